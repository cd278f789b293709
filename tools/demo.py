#!/usr/bin/env python
"""Detect objects in images, a video or a webcam's frames, and draw them.

The same as `d2-plugins predict`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["predict", *sys.argv[1:]]))
