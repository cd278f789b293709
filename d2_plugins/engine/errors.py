"""The one exception whose message alone is shown to the user."""

__all__ = ["UsageError"]


class UsageError(Exception):
    """A mistake in the command line, the config or the data set.

    The message names what is wrong and what is allowed; command-line tools print it without a
    stack trace and exit with status 2.
    """
