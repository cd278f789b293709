#!/usr/bin/env python
"""Write a detector as TorchScript (.ts), torch.export (.pt2) or ONNX (.onnx), and check it.

Every file is read back and run on the photographs (ONNX on ONNX Runtime); it must find the boxes
that the model finds, or the exit status is 1. What is written takes images of any size unless
--fixed-size is given, which backbones with TensorFlow's 'same' padding (timm's tf_*) need:

    inputs   image (3, H, W) float32, channels as in INPUT.FORMAT, 0..255, padded at the bottom and
             on the right to the multiples that are printed; size (2,) int64, its height and width
             before the padding
    outputs  boxes (D, 4) XYXY in pixels of the image, scores (D,), classes (D,), with a mask head
             masks (D, 1, M, M): probabilities over each box

TorchScript and torch.export run on the device they are written on (MODEL.DEVICE).
"""

import argparse
from collections.abc import Sequence

from d2_plugins.checkpoint.checkpointer import load_model
from d2_plugins.cli.parsers import config_from, config_parser, exit_status
from d2_plugins.data.images import load_photo
from d2_plugins.errors import usage_errors
from d2_plugins.export import ExportableDetector, check_paths, check_sizes, export_and_check

EXAMPLE = """
Example:
    $ tools/export_model.py --config-file configs/csp_cascade.yaml --input photo.jpg \\
        --output model.onnx --output model.ts MODEL.WEIGHTS model_final.pth
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_parser(__doc__, EXAMPLE)
    repeatable = {"required": True, "action": "append", "metavar": "FILE"}
    parser.add_argument("--input", **repeatable, help="a photograph; repeatable")
    parser.add_argument("--output", **repeatable, help="to write; repeatable")
    parser.add_argument("--box-tolerance", type=float, default=0.1, help="pixels (%(default)s)")
    parser.add_argument("--score-tolerance", type=float, default=1e-4, help="(%(default)s)")
    parser.add_argument(
        "--fixed-size",
        action="store_true",
        help="for images of the photograph's padded size only (.pt2 and .onnx)",
    )
    return exit_status(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> int:
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


if __name__ == "__main__":
    raise SystemExit(main())
