#!/usr/bin/env python
"""Write a detector as TorchScript, torch.export or ONNX, and compare its results.

The same as `d2-plugins export`; --help lists the options.
"""

import sys

from d2_plugins_command import main

if __name__ == "__main__":
    raise SystemExit(main(["export", *sys.argv[1:]]))
