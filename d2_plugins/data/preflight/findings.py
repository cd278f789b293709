"""Findings of a pre-flight check, grouped by kind, and their report."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from ...errors import UsageError

__all__ = ["Finding", "Report", "Severity"]

# An error stops the training or makes it meaningless; a warning concerns something that
# detectron2 drops or corrects; a note is information.
Severity = Literal["error", "warning", "note"]

_EXAMPLES = 5
_MAX_LENGTH = 300
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass
class Finding:
    """Findings of one kind.

    Attributes:
        severity: error, warning or note.
        kind: description of the problem.
        count: number of occurrences.
        examples: the first occurrences, each with file and id.
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
    """Report of a pre-flight check.

    Attributes:
        title: name of the checked data.
        num_images: number of images in the JSON.
        num_annotations: number of annotations in the JSON, including crowds.
        num_crowds: number of annotations with ``iscrowd``.
        num_empty: number of images without annotations.
        class_counts: number of annotations per class name, for all classes of the JSON.
        findings: findings by kind, in order of occurrence.
    """

    title: str
    num_images: int = 0
    num_annotations: int = 0
    num_crowds: int = 0
    num_empty: int = 0
    class_counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, kind: str, example: str) -> None:
        """Count one more finding of a kind, and keep the first few examples.

        Args:
            severity: error, warning or note.
            kind: description of the problem, the same for all findings that are counted together.
            example: place of this finding; unprintable characters are escaped.
        """
        finding = next((f for f in self.findings if f.kind == kind), None)
        if finding is None:
            finding = Finding(severity, kind)
            self.findings.append(finding)
        finding.count += 1
        if len(finding.examples) < _EXAMPLES:
            finding.examples.append(_one_line(example))

    def select(self, severity: Severity) -> list[Finding]:
        """Return the findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def ok(self) -> bool:
        """True if the report has no errors."""
        return not self.select("error")

    def raise_for_errors(self) -> None:
        """Raise an exception if the report has errors.

        Raises:
            UsageError: with the first error and the number of others, in one line.
        """
        errors = self.select("error")
        if errors:
            others = sum(finding.count for finding in errors) - 1
            rest = f"; {others} more errors, listed by d2-plugins check" if others else ""
            raise UsageError(f"{self.title}: {errors[0].examples[0]}: {errors[0].kind}{rest}")

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


def _one_line(text: str) -> str:
    """Escape unprintable characters and shorten the text."""
    text = _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)
    return text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}..."
