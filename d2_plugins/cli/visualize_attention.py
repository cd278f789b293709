"""Pictures of what Inverted Attention sees in a photograph.

For each detected object: the region, the attention map M of its class over it, the region with
the places that Inverted Attention switches off, and the class probability before and after.
Detections stand in for the annotations of training: an object's class is the detected one.

Shape shorthand: R regions, P pooled resolution, H and W of the image as the network sees it.
"""

import argparse
from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from ..checkpoint.checkpointer import load_model
from ..data.images import load_photo
from ..errors import usage_errors
from ..visualization.inverted_attention import attention_config, draw_regions, explain_regions
from .parsers import config_from, exit_status, photo_parser, save_figure

__all__ = ["main"]

_EXAMPLE = """
Example:
    $ d2-plugins visualize-attention --config-file csp_cascade.yaml --input photo.jpg \\
        --output attention.png MODEL.WEIGHTS model_final.pth
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 if nothing is detected.
    """
    parser = photo_parser(__doc__, _EXAMPLE, output="attention.png")
    parser.add_argument("--num-regions", type=int, default=6, help="best detections to show")
    return exit_status(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    cfg = attention_config(config_from(args))
    model = load_model(cfg)
    with usage_errors():
        image, photo = load_photo(cfg, args.input)
    regions = explain_regions(model, image, num_regions=args.num_regions)
    if not regions:
        print(f"nothing is detected in {args.input}")
        return 1
    names = [MetadataCatalog.get(name).get("thing_classes") for name in cfg.DATASETS.TEST]
    figure = draw_regions(photo, regions, class_names=(names or [None])[0])
    save_figure(figure, args.output, dpi=110)
    print(f"wrote {args.output}: {len(regions)} regions")
    return 0
