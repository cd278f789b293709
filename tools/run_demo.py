#!/usr/bin/env python
"""Train a small detector on the embedded dataset.

The same as `d2-plugins demo`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["demo", *sys.argv[1:]]))
