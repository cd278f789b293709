"""Preparation of datasets: download, unpack, install, verify, convert."""
