#!/usr/bin/env python
"""Draw what Inverted Attention hides of the objects in a photograph.

    tools/visualize_attention.py --config-file configs/csp_cascade.yaml --input photo.jpg \
        --output attention.png MODEL.WEIGHTS model_final.pth

All options: --help.
"""

from d2_plugins.cli.visualize_attention import main

if __name__ == "__main__":
    raise SystemExit(main())
