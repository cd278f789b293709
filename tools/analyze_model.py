#!/usr/bin/env python
"""Report parameters, FLOPs, activations and latency of a detector, by part.

The same as `d2-plugins analyze`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["analyze", *sys.argv[1:]]))
