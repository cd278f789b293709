#!/usr/bin/env python
"""Find wording that reads badly, with a better form for each finding.

make lint runs it over the Python, Markdown and YAML files of the checkout.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (".github", "configs", "d2_plugins", "dev", "docs", "tests", "tools")
SUFFIXES = (".cff", ".md", ".py", ".yaml", ".yml")
# These hold the words because they are about them.
ALLOWED = ("dev/check_words.py", "tests/dev/test_check_words.py")

BETTER = {
    r'"""(?:What|Which|Whether|How many)\b': 'begin with a verb or a noun: "Return ..."',
    r'"""Args:': "begin with a sentence",
    r"(?<!there )\b(?:is|are|was|were) no\b(?! longer|$)": '"is not a"',
    r"\banew\b": '"again"',
    r"\bat hand\b": '"available"',
    r"\bto be had\b": '"available"',
    r"\bbeside\b": '"next to", "compared with"',
    r"\bwhatever\b": "name it, or leave it out",
    r"\bdata sets?\b": '"dataset"',
    r"\bmend(?:s|ed|ing)?\b": '"fix"',
    r"\bits kin\b": '"its subclasses"',
    r"\bheard by\b": '"read by"',
    r"\bso many\b": '"as many", or the number',
    r"\bso that nobody\b": "say what it is for",
    r"\bwished for\b": '"requested"',
    r"\b\w+'s business\b": "say who does it",
    r"\bsays? nothing\b": "say what is missing",
    r"\btold in (?:a|one) line\b": '"reported in one line"',
}
# The number of the group is the position in BETTER.
PATTERN = re.compile("|".join(f"({pattern})" for pattern in BETTER), re.IGNORECASE)


def findings(text: str) -> Iterator[str]:
    """Yield ``LINE: 'words': better form`` for each finding in the text of a file."""
    for number, line in enumerate(text.splitlines(), start=1):
        for match in PATTERN.finditer(line):
            better = list(BETTER.values())[(match.lastindex or 1) - 1]
            yield f"{number}: '{match[0]}': {better}"


def files() -> list[Path]:
    """Return the files that are checked: those in FOLDERS and next to them, without ALLOWED."""
    found = [*ROOT.glob("*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    skipped = {ROOT / name for name in ALLOWED}
    return sorted(p for p in found if p.suffix in SUFFIXES and not skipped & {p, *p.parents})


def main() -> int:
    """Print the findings; return the exit status, 1 if there are any."""
    found = [
        f"{path.relative_to(ROOT)}:{finding}"
        for path in files()
        for finding in findings(path.read_text(encoding="utf-8"))
    ]
    print("\n".join(found) or "No words to avoid.")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
