#!/usr/bin/env python
"""Draw losses and APs of several training runs side by side.

The same as `d2-plugins plot-runs`; --help lists the options.
"""

from d2_plugins.cli.plot_runs import main

if __name__ == "__main__":
    raise SystemExit(main())
