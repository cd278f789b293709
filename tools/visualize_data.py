#!/usr/bin/env python
"""Draw a dataset's annotations or augmented training samples.

The same as `d2-plugins visualize-data`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["visualize-data", *sys.argv[1:]]))
