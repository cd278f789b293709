"""The one exception whose message alone is shown to the user."""

import contextlib
from collections.abc import Iterator

from ..checkpoint import IncompleteWeightsError

__all__ = ["UsageError", "usage_errors"]


class UsageError(Exception):
    """A mistake in the command line, the config or the data set.

    The message names what is wrong and what is allowed; command-line tools print it without a
    stack trace and exit with status 2.
    """


@contextlib.contextmanager
def usage_errors(where: str = "") -> Iterator[None]:
    """Files, weights, values and missing extras are for the user to mend: as UsageError.

    Args:
        where: the key or the file, to stand before the message.
    """
    try:
        yield
    except (ImportError, OSError, ValueError, IncompleteWeightsError) as error:
        raise UsageError(f"{where}: {error}" if where else str(error)) from error
