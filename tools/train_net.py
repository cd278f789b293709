#!/usr/bin/env python
"""Train or evaluate a detector: detectron2's train_net with the components of d2_plugins.

The same as `d2-plugins train`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
