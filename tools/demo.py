#!/usr/bin/env python
"""Detect objects in images, a video or a webcam's pictures, and draw them.

    tools/demo.py --config-file output/config.yaml --input photo.jpg --output detected \
        MODEL.WEIGHTS output/model_final.pth

All options: --help.
"""

from d2_plugins.cli.predict import main

if __name__ == "__main__":
    raise SystemExit(main())
