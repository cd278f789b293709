#!/usr/bin/env python
"""Draw losses and APs of several training runs side by side.

The same as `d2-plugins plot-runs`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["plot-runs", *sys.argv[1:]]))
