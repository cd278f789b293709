#!/usr/bin/env python
"""Train or evaluate a LazyConfig: detectron2's lazyconfig_train_net with our engine.

    tools/lazyconfig_train_net.py --config-file configs/lazy/csp_cascade.py --num-gpus 8

All options: --help. Guide: docs/use_in_your_project.md.
"""

from d2_plugins.cli.train_lazy import main

if __name__ == "__main__":
    raise SystemExit(main())
