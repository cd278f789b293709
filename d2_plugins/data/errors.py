"""What is raised about data, apart from missing files."""

__all__ = ["DatasetError"]


class DatasetError(ValueError):
    """Something in a data set is wrong; the message names the file and, if there is one, the id."""
