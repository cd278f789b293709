"""Findings of a pre-flight check, gathered by kind and readable."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ...errors import UsageError

__all__ = ["Finding", "Report", "Severity"]

# An error stops the training or makes it meaningless; a warning is something detectron2 drops or
# mends; a note is something worth knowing.
Severity = Literal["error", "warning", "note"]

_EXAMPLES = 5


@dataclass
class Finding:
    """One kind of finding.

    Attributes:
        severity: error, warning or note.
        kind: what is wrong, in words.
        count: how often it was met.
        examples: the first of them, each with file and id.
    """

    severity: Severity
    kind: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = "; ".join(self.examples)
        rest = f"; and {self.count - len(self.examples)} more"
        return f"{self.severity}: {self.kind} ({self.count}): {shown}" + (
            rest if self.count > len(self.examples) else ""
        )


@dataclass
class Report:
    """What a pre-flight check found.

    Attributes:
        title: which data was checked.
        num_images: entries in the json.
        num_annotations: entries in the json, crowds included.
        num_crowds: annotations with ``iscrowd``.
        num_empty: images without annotations.
        class_counts: annotations per class name, all classes of the json.
        findings: by kind, in the order they were met.
    """

    title: str
    num_images: int = 0
    num_annotations: int = 0
    num_crowds: int = 0
    num_empty: int = 0
    class_counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, kind: str, example: str) -> None:
        """Count one more finding of a kind, and keep the first few examples."""
        finding = next((f for f in self.findings if f.kind == kind), None)
        if finding is None:
            finding = Finding(severity, kind)
            self.findings.append(finding)
        finding.count += 1
        if len(finding.examples) < _EXAMPLES:
            finding.examples.append(example)

    def select(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def ok(self) -> bool:
        """Without errors."""
        return not self.select("error")

    def raise_for_errors(self) -> None:
        """Raise the whole report if it has errors.

        Raises:
            UsageError: with the report as its message.
        """
        if not self.ok:
            raise UsageError(str(self))

    def _lines(self) -> Iterator[str]:
        counts = {severity: len(self.select(severity)) for severity in ("error", "warning")}
        result = ", ".join(f"{n} kind(s) of {s}" for s, n in counts.items() if n) or "no problems"
        yield f"Pre-flight check of {self.title}: {result}"
        yield (
            f"  {self.num_images} images ({self.num_empty} without annotations), "
            f"{self.num_annotations} annotations ({self.num_crowds} crowds), "
            f"{len(self.class_counts)} classes"
        )
        common = [f"{name} {count}" for name, count in self.class_counts.most_common()]
        yield f"  {', '.join(common[:20])}{', ...' if len(common) > 20 else ''}"
        for severity in ("error", "warning", "note"):
            yield from (f"  {finding}" for finding in self.select(severity))

    def __str__(self) -> str:
        return "\n".join(self._lines())
