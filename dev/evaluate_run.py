#!/usr/bin/env python
"""Evaluate trained weights and write the metrics as JSON, by the names of metrics.json.

dev/evaluate_run.py CONFIG RESULT.json [KEY VALUE ...]
"""

import sys

from detectron2.evaluation.testing import flatten_results_dict

from d2_plugins.checkpoint.checkpointer import load_model
from d2_plugins.engine import Trainer
from d2_plugins.files import atomic_write_json
from d2_plugins.model_zoo import read_config


def main(config: str, result: str, *opts: str) -> None:
    cfg = read_config(config, opts)
    cfg.MODEL.DEVICE = "cpu"
    metrics = flatten_results_dict(Trainer.test(cfg, load_model(cfg)))
    atomic_write_json(result, {name: value for name, value in metrics.items() if "/" in name})


if __name__ == "__main__":
    main(*sys.argv[1:])
