#!/usr/bin/env python
"""The demo: trains a small detector on the embedded shapes and reports; `make demo` runs it.

Usage: tools/run_demo.py [KEY VALUE ...]
"""

import os
import sys

# OpenMP reads this when torch is loaded. Threads that sleep while they wait cost an idle machine
# little, and on one that has other things to do the demo runs several times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from d2_plugins.engine.run_demo import run_demo  # noqa: E402  (after the variable is set)

if __name__ == "__main__":
    run_demo(sys.argv[1:])
