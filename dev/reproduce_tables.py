#!/usr/bin/env python
"""Train the comparisons of docs/benchmarks.md on a CPU, and write their tables into it.

    dev/reproduce_tables.py shapes-recall --jobs 2
    dev/reproduce_tables.py --output output/tables   # all; hours on two cores

A run that has finished is not repeated: delete its folder to have it anew.
"""

import argparse
import sys
from pathlib import Path

from dev.trained_tables import TABLES, format_table, replace_table, train_table

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", type=Path, default=Path("output/tables"))
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "benchmarks.md")
    args = parser.parse_args()
    unknown = set(args.tables) - set(TABLES)
    if unknown or args.jobs < 1:
        parser.error(f"tables are {', '.join(TABLES)}; --jobs is at least 1")
    train_net = [sys.executable, str(ROOT / "tools" / "train_net.py")]
    for name in args.tables or TABLES:
        table = TABLES[name]
        results = train_table(table, args.output / name, train_net, jobs=args.jobs)
        text = format_table(table, results)
        replace_table(args.document, name, text)
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
