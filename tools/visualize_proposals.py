#!/usr/bin/env python
"""Draw the stages of Cascade RPN on a photo.

The same as `d2-plugins visualize-proposals`; --help lists the options.
"""

from d2_plugins.cli.visualize_proposals import main

if __name__ == "__main__":
    raise SystemExit(main())
