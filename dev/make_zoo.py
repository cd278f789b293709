#!/usr/bin/env python
"""Write docs/model_zoo.md from docs/zoo.yaml and the configs.

    dev/make_zoo.py --no-latency

Counting takes some seconds per config, timing (in turn with a baseline) a minute. --only measures
the named configs again and keeps the page's figures of the others; without names it measures none,
for changes of docs/zoo.yaml alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for dev

from d2_plugins.benchmark.machine import describe_machine  # noqa: E402
from d2_plugins.files import atomic_open  # noqa: E402
from dev.zoo_page import (  # noqa: E402
    check_entries,
    format_page,
    measure,
    read_entries,
    read_measured,
    trainable_configs,
)

DOCS = ROOT / "docs"
CONFIGS_AT = "../configs"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=Path, default=DOCS / "zoo.yaml", help="written by hand")
    parser.add_argument("--output", type=Path, default=DOCS / "model_zoo.md", help="the page")
    parser.add_argument("--only", nargs="*", metavar="CONFIG", help="measure these alone")
    parser.add_argument("--no-latency", action="store_true", help="leave the time blank")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    print(describe_machine())
    try:
        entries = read_entries(args.entries)
        check_entries(entries, trainable_configs())
        unknown = set(args.only or ()) - set(entries)
        if unknown:
            raise ValueError(f"--only: no config {', '.join(sorted(unknown))}")
    except (OSError, ValueError) as error:
        parser().error(str(error))
    measured = {}
    if args.only is not None:
        measured = read_measured(args.output.read_text(encoding="utf-8"), configs_at=CONFIGS_AT)
    for name in entries if args.only is None else args.only:
        measured[name] = measure(name, repeats=0 if args.no_latency else args.repeats)
        print(f"{name}: {measured[name]}", flush=True)
    with atomic_open(args.output) as file:
        file.write(format_page(entries, measured, configs_at=CONFIGS_AT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
