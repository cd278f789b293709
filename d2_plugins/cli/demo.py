"""Train, evaluate and report on the embedded shapes dataset, on a CPU in minutes.

Writes curves, pictures, report.html and results.json (APs and minutes) under OUTPUT_DIR. The last
line printed holds the box AP.
"""

import argparse
import math
import time
from collections.abc import Sequence

import torch

from ..engine.setup import build_cfg
from ..files import atomic_write_json
from .parsers import exit_status, parse_train_args, text_parser
from .train import run

__all__ = ["main", "run_demo"]

_CONFIG = "Demo/csp_cascade.yaml"
_EXAMPLE = """
Example:
    $ d2-plugins demo OUTPUT_DIR output/demo
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: KEY VALUE pairs; None for those of the process.

    Returns:
        The exit status: 0, or 2 after a mistake in the pairs.
    """
    parser = text_parser(__doc__, _EXAMPLE)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config values to change")
    return exit_status(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    run_demo(args.opts)
    return 0


def run_demo(opts: Sequence[str] = ()) -> float:
    """Train a small detector and write its results, curves, pictures and report.

    Args:
        opts: KEY VALUE pairs that change the config.

    Returns:
        The box AP in percent.
    """
    start = time.perf_counter()
    torch.set_num_threads(min(torch.get_num_threads(), 4))  # the maps are too small for more
    args = parse_train_args(["--config-file", _CONFIG, "--num-gpus", "0", *opts])
    cfg = build_cfg(args)
    results = run(args, cfg)
    assert results is not None  # this single process is the main one
    minutes = (time.perf_counter() - start) / 60
    atomic_write_json(f"{cfg.OUTPUT_DIR}/results.json", {**results, "minutes": minutes})
    print(f"report: {cfg.OUTPUT_DIR}/report.html")
    box_ap = float(results["bbox"]["AP"])
    print(f"demo: box AP {0.0 if math.isnan(box_ap) else box_ap:.1f} in {minutes:.1f} min")
    return box_ap
