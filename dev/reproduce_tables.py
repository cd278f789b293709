#!/usr/bin/env python
"""Train the comparisons of docs/benchmarks.md on a CPU, and write their tables into it.

    dev/reproduce_tables.py shapes-recall --jobs 2
    dev/reproduce_tables.py --list                     # what is still to be trained
    dev/reproduce_tables.py shapes --finished          # the table of the runs that have ended
    dev/reproduce_tables.py --output output/tables     # all; many hours on two cores

The table "shapes" is also written for the report of the demo, to d2_plugins/report/part_gains.json.
The results of finished runs are kept in dev/records and are not repeated: delete a file there to
train its run again.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for dev

from d2_plugins.files import atomic_write_json  # noqa: E402
from d2_plugins.report import part_gains as gains_of_report  # noqa: E402
from dev.trained_tables import (  # noqa: E402
    TABLES,
    finished_runs,
    format_table,
    missing_runs,
    part_gains,
    replace_table,
    train_table,
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time")
    parser.add_argument("--output", type=Path, default=Path("output/tables"))
    parser.add_argument("--records", type=Path, default=ROOT / "dev" / "records")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--gains", type=Path, default=gains_of_report.FILE)
    parser.add_argument("--list", action="store_true", help="list the runs without a record")
    parser.add_argument("--finished", action="store_true", help="write the tables, train nothing")
    args = parser.parse_args()
    unknown = set(args.tables) - set(TABLES)
    if unknown or args.jobs < 1:
        parser.error(f"tables are {', '.join(TABLES)}; --jobs is at least 1")
    train_net = [sys.executable, str(ROOT / "tools" / "train_net.py")]
    for name in args.tables or TABLES:
        table, records = TABLES[name], args.records / name
        if args.list:
            print("\n".join(f"{name}: {run}" for run in missing_runs(table, records)))
            continue
        if args.finished:
            results = finished_runs(table, records)
        else:
            results = train_table(table, args.output / name, records, train_net, jobs=args.jobs)
        text = format_table(table, results)
        replace_table(args.document, name, text)
        if name == "shapes" and not missing_runs(table, records):
            atomic_write_json(args.gains, part_gains(table, results))
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
