#!/usr/bin/env python
"""Train or evaluate a LazyConfig: detectron2's lazyconfig_train_net with our engine.

The same as `d2-plugins train-lazy`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["train-lazy", *sys.argv[1:]]))
