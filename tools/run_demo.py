#!/usr/bin/env python
"""The demo: trains a small detector on the embedded shapes and reports; `make demo` runs it.

Usage: tools/run_demo.py [KEY VALUE ...]
"""

import sys

from d2_plugins.cli.demo import run_demo

if __name__ == "__main__":
    run_demo(sys.argv[1:])
