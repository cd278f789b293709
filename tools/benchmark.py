#!/usr/bin/env python
"""Time the components against alternatives.

The same as `d2-plugins benchmark`; --help lists the options.
"""

from d2_plugins.cli.benchmark import main

if __name__ == "__main__":
    raise SystemExit(main())
