"""Loggers of a run: all messages in log.txt, without colours, and fewer of them on the screen."""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

__all__ = ["quiet_screen", "setup_loggers"]

_NAMES = ("detectron2", "fvcore", "d2_plugins")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _WithoutColour(logging.Formatter):
    """Removes the ANSI codes of colours from what another formatter returns."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return _COLOUR.sub("", self._formatter.format(record))


def setup_loggers(output_dir: str) -> None:
    """Set up the loggers of detectron2, fvcore and this package, on the screen and in log.txt.

    detectron2's ``default_setup`` uses the first two as they are if it is called afterwards.

    Args:
        output_dir: folder of the file; processes other than the main one add their rank to its
            name.
    """
    rank = comm.get_rank()
    # setup_logger remembers its arguments: these are the ones of default_setup.
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    setup_logger(output_dir, distributed_rank=rank)
    setup_logger(output_dir, distributed_rank=rank, name="d2_plugins")
    for handler in _handlers(_NAMES, on_screen=False):
        if handler.formatter and not isinstance(handler.formatter, _WithoutColour):
            handler.setFormatter(_WithoutColour(handler.formatter))


@contextlib.contextmanager
def quiet_screen(*names: str) -> Iterator[None]:
    """Write messages below the level of a warning to log.txt only.

    Args:
        names: loggers, from those of :func:`setup_loggers`; by default detectron2's and fvcore's.
    """
    handlers = list(_handlers(names or ("detectron2", "fvcore"), on_screen=True))
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


def _handlers(names: tuple[str, ...], *, on_screen: bool) -> Iterator[logging.StreamHandler]:
    for name in names:
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.StreamHandler):
                continue
            if (handler.stream is sys.stdout) == on_screen:
                yield handler
