"""Datasets that are registered by name, and the COCO files derived for them."""
