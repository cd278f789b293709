"""Publishing of a trained detector: its model card, and the upload to the Hugging Face Hub."""

from .card import model_card
from .push import push_run, write_repository

__all__ = ["model_card", "push_run", "write_repository"]
