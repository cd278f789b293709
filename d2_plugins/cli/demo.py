"""The main job at small scale: train, evaluate and report on the embedded shapes, on a CPU."""

import math
import time
from collections.abc import Sequence

import torch

from ..engine.setup import build_cfg
from ..files import atomic_write_json
from .arguments import parse_args
from .train import run

__all__ = ["run_demo"]

_CONFIG = "Demo/csp_cascade.yaml"


def run_demo(opts: Sequence[str] = ()) -> float:
    """Train a small detector, and write what came out under its ``OUTPUT_DIR``.

    Writes ``results.json`` (the AP dictionary and the minutes), the curves and pictures and
    ``report.html``; prints the box AP in its last line.

    Args:
        opts: KEY VALUE pairs that change the config.

    Returns:
        The box AP in percent.
    """
    start = time.perf_counter()
    torch.set_num_threads(min(torch.get_num_threads(), 4))  # the maps are too small for more
    args = parse_args(["--config-file", _CONFIG, "--num-gpus", "0", *opts])
    cfg = build_cfg(args)
    results = run(args)
    assert results is not None  # one process: it is the main one
    minutes = (time.perf_counter() - start) / 60
    atomic_write_json(f"{cfg.OUTPUT_DIR}/results.json", {**results, "minutes": minutes})
    print(f"report: {cfg.OUTPUT_DIR}/report.html")
    box_ap = float(results["bbox"]["AP"])
    print(f"demo: box AP {0.0 if math.isnan(box_ap) else box_ap:.1f} in {minutes:.1f} min")
    return box_ap
