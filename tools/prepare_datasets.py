#!/usr/bin/env python
"""Prepare datasets under the dataset root, or check one.

The same as `d2-plugins prepare`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare", *sys.argv[1:]]))
