#!/usr/bin/env python
"""Draw what Cascade RPN does to a few cells of a photograph.

    tools/visualize_proposals.py --config-file configs/COCO-Proposals/crpn_R_50_FPN_1x.yaml \
        --input photo.jpg --output proposals.png MODEL.WEIGHTS model_final.pth

All options: --help.
"""

from d2_plugins.cli.visualize_proposals import main

if __name__ == "__main__":
    raise SystemExit(main())
