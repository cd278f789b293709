"""Progress bars on a terminal, above which log lines stay readable."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from detectron2.utils import comm
from tqdm import tqdm

__all__ = ["ProgressBar", "with_progress"]

# Loggers of lines that say what a bar shows: metrics of iterations, number of evaluated images.
_METRICS, _EVALUATOR = "detectron2.utils.events", "detectron2.evaluation.evaluator"


class ProgressBar(tqdm):
    """A bar with the remaining time on a terminal; nothing elsewhere.

    While it is shown, loggers write above it, and do not show the lines that repeat what it says.
    Log files get all lines, and so does the screen where there is no bar: where the standard error
    is not a terminal, and in all processes but the main one. A bar must be closed before the next
    one is opened, and before anything is printed past the loggers.
    """

    def __init__(self, iterable: Iterable[Any] | None = None, **settings: Any) -> None:
        """Open the bar.

        Args:
            iterable: what is iterated over, if the bar is.
            settings: tqdm's, such as ``total``, ``initial``, ``desc`` and ``unit``.
        """
        self._screens: list[tuple[logging.StreamHandler, TextIO]] = []
        disable = None if comm.is_main_process() else True  # None: unless it is a terminal
        # miniters=1: otherwise a thread draws the bar again some time after the last update.
        super().__init__(
            iterable, disable=disable, leave=False, dynamic_ncols=True, miniters=1, **settings
        )
        if self.disable:
            return
        for handler in _screen_handlers():
            self._screens.append((handler, handler.stream))
            handler.setStream(_AboveBar(handler.stream))
            handler.addFilter(_adds_to_the_bar)

    def close(self) -> None:
        """Remove the bar from the screen."""
        while self._screens:
            handler, stream = self._screens.pop()
            handler.removeFilter(_adds_to_the_bar)
            handler.setStream(stream)
        super().close()


class _ShownLoader:
    """A data loader that shows a bar while it is iterated over."""

    def __init__(self, loader: Any, description: str) -> None:
        self._loader = loader
        self._description = description

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        with ProgressBar(self._loader, desc=self._description, unit="batch") as bar:
            yield from bar


def with_progress(loader: Any, description: str) -> Any:
    """Return ``loader``, or on a terminal one with the same batches that shows a bar.

    Args:
        loader: a data loader with a length.
        description: words in front of the bar.
    """
    shown = comm.is_main_process() and sys.stderr.isatty()
    return _ShownLoader(loader, description) if shown else loader


class _AboveBar:
    """Stream that writes text above the bar."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        tqdm.write(text, file=self._stream, end="")

    def flush(self) -> None:
        self._stream.flush()


def _screen_handlers() -> list[logging.StreamHandler]:
    """Return the handlers of all loggers that write to a terminal."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {h for logger in loggers for h in getattr(logger, "handlers", ())}
    return [
        handler
        for handler in handlers
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "isatty", bool)()
    ]


def _adds_to_the_bar(record: logging.LogRecord) -> bool:
    """Return False for a log line that says what the bar shows."""
    if record.name == _EVALUATOR:
        return not record.getMessage().startswith("Inference done")
    return record.name != _METRICS
