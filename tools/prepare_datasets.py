#!/usr/bin/env python
"""Prepare data sets under the dataset root, or check one.

    tools/prepare_datasets.py penn_fudan
    tools/prepare_datasets.py check --json train.json --images train/

All options: --help. Guide: docs/datasets.md.
"""

from d2_plugins.cli.prepare import main

if __name__ == "__main__":
    raise SystemExit(main())
