#!/usr/bin/env python
"""Prepare datasets under the dataset root, or check one.

The same as `d2-plugins prepare`; --help lists the options.
"""

from d2_plugins.cli.prepare import main

if __name__ == "__main__":
    raise SystemExit(main())
