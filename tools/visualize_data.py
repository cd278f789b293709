#!/usr/bin/env python
"""Draw the annotations of a data set, or the augmented samples that a model is trained on.

    tools/visualize_data.py --config-file configs/csp_cascade.yaml --source dataloader \
        --output pictures

All options: --help.
"""

from d2_plugins.cli.visualize_data import main

if __name__ == "__main__":
    raise SystemExit(main())
