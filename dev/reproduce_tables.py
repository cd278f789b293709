#!/usr/bin/env python
"""Train the comparisons of docs/benchmarks.md on a CPU, and write their tables into it.

    dev/reproduce_tables.py shapes-recall --jobs 2
    dev/reproduce_tables.py --list                     # what is still to be trained
    dev/reproduce_tables.py shapes --finished          # the table of the runs that have ended
    dev/reproduce_tables.py shapes --costs             # time the rows of trained models as well
    dev/reproduce_tables.py --output output/tables     # all; many hours on two cores

The gains of the parts are also written for the report of the demo, to
d2_plugins/report/part_gains.json, from all tables whose runs have ended. The results of finished
runs are kept in dev/records and are not repeated: delete a file there to train its run again.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for dev

from d2_plugins.files import atomic_write_json  # noqa: E402
from d2_plugins.report import part_gains as gains_of_report  # noqa: E402
from dev.row_costs import row_costs  # noqa: E402
from dev.table_runs import finished_runs, missing_runs, train_table  # noqa: E402
from dev.table_text import format_table, part_gains, replace_table  # noqa: E402
from dev.trained_tables import TABLES  # noqa: E402


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
    parser.add_argument(
        "--costs", action="store_true", help="time the rows, with the weights in --output"
    )
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
        file = records / "costs.json"
        if args.costs:
            atomic_write_json(file, row_costs(table, args.output / name))
        costs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        text = format_table(table, results, costs)
        replace_table(args.document, name, text)
        print(text, flush=True)
    if not args.list:
        write_gains(args.records, args.gains)
    return 0


def write_gains(records: Path, file: Path) -> None:
    """Write the gains of the parts, from the comparisons of which all runs have ended."""
    comparisons = [
        (table, finished_runs(table, records / name))
        for name, table in TABLES.items()
        if table.dataset and not missing_runs(table, records / name)
    ]
    if comparisons:
        atomic_write_json(file, part_gains(comparisons))


if __name__ == "__main__":
    raise SystemExit(main())
