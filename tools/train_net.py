#!/usr/bin/env python
"""Train or evaluate a detector: detectron2's train_net with the components of d2_plugins.

The same as `d2-plugins train`; --help lists the options.
"""

from d2_plugins.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
