#!/usr/bin/env python
"""Draw the stages of Cascade RPN on a photo.

The same as `d2-plugins visualize-proposals`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["visualize-proposals", *sys.argv[1:]]))
