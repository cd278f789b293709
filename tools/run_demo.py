#!/usr/bin/env python
"""Train a small detector on the embedded dataset.

The same as `d2-plugins demo`; --help lists the options.
"""

from d2_plugins.cli.demo import main

if __name__ == "__main__":
    raise SystemExit(main())
