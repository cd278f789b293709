"""A picture of what Cascade RPN does to a few cells of a photograph.

Side by side: the cells' anchors, their boxes after every stage, and where the last adaptive
convolution samples for them.
"""

import argparse
from collections.abc import Sequence

from ..checkpoint.checkpointer import load_model
from ..data.images import load_photo
from ..errors import usage_errors
from ..visualization.cascade_rpn import draw_cells, trace_cells
from .parsers import config_from, exit_status, photo_parser, save_figure

__all__ = ["main"]

_EXAMPLE = """
Example:
    $ d2-plugins visualize-proposals --config-file COCO-Proposals/crpn_R_50_FPN_1x.yaml \\
        --input photo.jpg --output proposals.png MODEL.WEIGHTS model_final.pth
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status.
    """
    parser = photo_parser(__doc__, _EXAMPLE, output="proposals.png")
    parser.add_argument("--num-cells", type=int, default=5, help="best cells to show")
    parser.add_argument(
        "--cell",
        action="append",
        metavar="LEVEL:ROW:COLUMN",
        help="show this cell, e.g. p3:12:40, instead of the best ones; may be repeated",
    )
    return exit_status(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    cfg = config_from(args)
    with usage_errors():
        image, photo = load_photo(cfg, args.input)
        chosen = trace_cells(load_model(cfg), image, num_cells=args.num_cells, cells=args.cell)
    save_figure(draw_cells(photo, chosen), args.output, dpi=150)
    print(f"wrote {args.output}: cells {', '.join(chosen.names)}")
    return 0
