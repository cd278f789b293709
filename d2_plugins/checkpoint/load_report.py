"""Summary of the entries of a model that a weights file has filled, and the check of it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import IncompleteWeightsError

__all__ = ["LoadReport"]

_MAX_LINES = 10


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """Filled, missing and unused entries after a weights file was loaded into a model.

    Attributes:
        source: the file, as the user named it.
        total: number of entries of the model.
        missing: entries of the model that are not in the file.
        unexpected: entries of the file that the model does not have.
        shapes: entries in both with different shapes, as (name, shape in file, shape in model).
    """

    source: str
    total: int
    missing: Sequence[str]
    unexpected: Sequence[str]
    shapes: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]

    @property
    def unfilled(self) -> list[str]:
        """Entries of the model that kept their values."""
        return sorted({*self.missing, *(name for name, _, _ in self.shapes)})

    def __str__(self) -> str:
        lines = [
            f"Weights from {self.source}: {self.total - len(self.unfilled)} of {self.total} "
            "entries of the model filled"
        ]
        if self.missing:
            lines.append(f"  not in the file: {_by_part(self.missing)}")
        if self.shapes:
            lines.append(f"  of another shape: {_shape_lines(self.shapes)}")
        unexpected = [name for name in self.unexpected if not _is_counter(name)]
        if unexpected:
            lines.append(f"  not in the model: {_by_part(unexpected)}")
        return "\n".join(lines)

    def require(self, required: Callable[[str], bool], allowed: Sequence[str], what: str) -> None:
        """Raise unless all entries that are needed were filled.

        Args:
            required: function that returns True for an entry that must be filled.
            allowed: shell patterns of entries that may keep their values.
            what: name of the part to be filled, for the message.

        Raises:
            IncompleteWeightsError: a required entry was not filled.
        """
        problems = [
            name
            for name in self.unfilled
            if required(name)
            and not _is_counter(name)
            and not any(fnmatchcase(name, pattern) for pattern in allowed)
        ]
        if problems:
            raise IncompleteWeightsError(
                f"{self}\n{len(problems)} entries of {what} keep their initial values, among them "
                f"{', '.join(problems[:_MAX_LINES])}. If that is meant, allow it by shell patterns "
                f"in MODEL.WEIGHTS_ALLOW_MISSING, for example ['{_part(problems[0])}*']."
            )


def _is_counter(name: str) -> bool:
    """Return True for BatchNorm's count of batches, read only by norms of momentum None."""
    return name.endswith(".num_batches_tracked")


def _part(name: str) -> str:
    """Return the name of the part that an entry belongs to; ``part*`` is a pattern for it."""
    levels = name.split(".")[:-1]
    if "attention" in levels:
        return f"{levels[0]}.*.attention"
    if "bottom_up" in levels:
        return ".".join(levels[: levels.index("bottom_up") + 2])
    # fpn_lateral2, fpn_lateral3, ... are one part.
    return re.sub(r"(?<=[a-z])\d+$", "", ".".join(levels[:2]))


def _by_part(names: Iterable[str]) -> str:
    counts = Counter(map(_part, names))
    parts = [f"{part or '(top)'} ({count})" for part, count in sorted(counts.items())]
    return _shorten(parts)


def _shape_lines(shapes: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> str:
    return _shorten([f"{n} {tuple(a)} in the file, {tuple(b)} here" for n, a, b in shapes])


def _shorten(parts: list[str]) -> str:
    rest = len(parts) - _MAX_LINES
    return ", ".join(parts[:_MAX_LINES]) + (f" and {rest} more" if rest > 0 else "")
