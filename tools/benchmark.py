#!/usr/bin/env python
"""Time the components against alternatives.

The same as `d2-plugins benchmark`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["benchmark", *sys.argv[1:]]))
