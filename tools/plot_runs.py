#!/usr/bin/env python
"""Draw the losses and APs of several training runs side by side.

    tools/plot_runs.py output/plain output/flagship --smooth 0.9 --output runs.png

All options: --help.
"""

from d2_plugins.cli.plot_runs import main

if __name__ == "__main__":
    raise SystemExit(main())
