#!/usr/bin/env python
"""Detect objects in images, a video or a webcam's frames, and draw them.

The same as `d2-plugins predict`; --help lists the options.
"""

from d2_plugins.cli.predict import main

if __name__ == "__main__":
    raise SystemExit(main())
