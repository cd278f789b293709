"""The exception for mistakes that a user can fix, and helpers for its messages."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = [
    "IncompleteWeightsError",
    "UsageError",
    "model_errors",
    "nearest",
    "shown",
    "usage_errors",
]


class UsageError(ValueError):
    """A mistake in the command line, the config, the dataset, the weights or another file.

    The message names the key, the file or the id, and what is allowed. Command-line tools print it
    in one line, without a stack trace, and exit with status 2.
    """


class IncompleteWeightsError(UsageError):
    """A weights file does not fill a part of the model that it must fill."""


@contextlib.contextmanager
def usage_errors(where: str = "") -> Iterator[None]:
    """Re-raise errors that the user can fix (files, values, missing extras) as UsageError.

    Args:
        where: config key or file that the message starts with.
    """
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        if isinstance(error, UsageError) and not where:
            raise
        kind = type(error) if isinstance(error, UsageError) else UsageError
        raise kind(f"{where}: {error}" if where else str(error)) from error


@contextlib.contextmanager
def model_errors() -> Iterator[None]:
    """Re-raise errors of a model's constructors as UsageError.

    The components of detectron2 check their part of the config by assertions and by looking up
    names, for example those of features that the backbone does not have.
    """
    try:
        with usage_errors():
            yield
    except (AssertionError, KeyError) as error:
        raise UsageError(
            f"The model of this config cannot be built: {type(error).__name__}: {error}"
        ) from error


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """Return the names most similar to a misspelled one, as a phrase for an error message.

    Args:
        name: the misspelled name.
        known: the names that exist.
        count: maximum number of names in the phrase.
    """
    return ", ".join(difflib.get_close_matches(name, list(known), n=count, cutoff=0.4)) or "none"


def shown(value: Any) -> str:
    """Return a value as messages show it: text as it is, others by repr, up to 100 characters."""
    text = str(value) if isinstance(value, str) and value else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
