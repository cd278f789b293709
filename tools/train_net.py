#!/usr/bin/env python
"""Train or evaluate a detector: detectron2's train_net with the components of d2_plugins.

    tools/train_net.py --config-file configs/csp_cascade.yaml --num-gpus 4

All options: --help. Guide: docs/training.md.
"""

from d2_plugins.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
