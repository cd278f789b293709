#!/usr/bin/env python
"""Draw what Inverted Attention hides of the objects in a photo.

The same as `d2-plugins visualize-attention`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["visualize-attention", *sys.argv[1:]]))
