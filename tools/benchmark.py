#!/usr/bin/env python
"""What the components cost, as ratios of things timed in turn.

    tools/benchmark.py adaptive-conv [--json]

All benchmarks: --help. What they print here: docs/benchmarks.md.
"""

from d2_plugins.cli.benchmark import main

if __name__ == "__main__":
    main()
