"""Write a detector as TorchScript (.ts), torch.export (.pt2) or ONNX (.onnx), and check it.

Every file is read back and run on the photos (ONNX on ONNX Runtime); unless it finds the boxes that
the model finds, the exit status is 1. The files take images of any size unless --fixed-size is
given, which backbones with TensorFlow's 'same' padding (timm's tf_*) need:

    inputs   image (3, H, W) float32, channels as in INPUT.FORMAT, 0..255, padded at the bottom and
             on the right to the multiples that this command prints; size (2,) int64, height and
             width before the padding
    outputs  boxes (D, 4) XYXY in pixels of the image, scores (D,), classes (D,), with a mask head
             masks (D, 1, M, M): probabilities over each box

TorchScript and torch.export run on the device that they are written on (MODEL.DEVICE).
"""

import argparse
from collections.abc import Sequence
from typing import Any

from ..checkpoint.checkpointer import load_model
from ..data.images import load_photo
from ..errors import usage_errors
from ..export import ExportableDetector, check_paths, check_sizes, export_and_check
from .parsers import config_from, config_parser, exit_status

__all__ = ["main"]

_EXAMPLE = """
Example:
    $ d2-plugins export --config-file csp_cascade.yaml --input photo.jpg \\
        --output model.onnx --output model.ts MODEL.WEIGHTS model_final.pth
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Export the detector of a config and compare the files with it.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0; 1 if a file finds other boxes; 2 after a mistake in the command line,
        the config, the weights or the photos.
    """
    parser = config_parser(__doc__, _EXAMPLE)
    repeatable: dict[str, Any] = {"required": True, "action": "append", "metavar": "FILE"}
    parser.add_argument("--input", **repeatable, help="a photo; may be repeated")
    parser.add_argument("--output", **repeatable, help="a file to write; may be repeated")
    parser.add_argument("--box-tolerance", type=float, default=0.1, help="pixels (%(default)s)")
    parser.add_argument("--score-tolerance", type=float, default=1e-4, help="(%(default)s)")
    parser.add_argument(
        "--fixed-size",
        action="store_true",
        help="for images of the photo's padded size only (.pt2 and .onnx)",
    )
    return exit_status(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    cfg = config_from(args)
    with usage_errors():
        check_paths(args.output)
        images = [load_photo(cfg, path)[0] for path in args.input]
        model = load_model(cfg)
        detector = ExportableDetector(model)
        check_sizes(detector, images, args.output, fixed_size=args.fixed_size)
    print(f"pad images to multiples of {detector.divisor}, at least {detector.least_side} pixels")
    same = export_and_check(
        detector,
        model,
        images,
        args.output,
        box_tolerance=args.box_tolerance,
        score_tolerance=args.score_tolerance,
        fixed_size=args.fixed_size,
    )
    return 0 if same else 1
