#!/usr/bin/env python
"""Write a detector as TorchScript, torch.export or ONNX, and compare its results.

The same as `d2-plugins export`; --help lists the options.
"""

from d2_plugins.cli.export import main

if __name__ == "__main__":
    raise SystemExit(main())
