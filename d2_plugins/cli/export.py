"""Write a detector as TorchScript (.ts), torch.export (.pt2) or ONNX (.onnx), and check it.

Every file is read back and run on the photos (ONNX on ONNX Runtime); unless it finds the boxes that
the model finds, the exit status is 1. The files take images of any size unless --fixed-size is
given, which backbones with TensorFlow's 'same' padding (timm's tf_*) need:

    inputs   image (3, H, W) float32, channels as in INPUT.FORMAT, 0..255, padded at the bottom and
             on the right to the multiples that this command prints; size (2,) int64, height and
             width before the padding
    outputs  boxes (D, 4) XYXY in pixels of the image, scores (D,), classes (D,), with a mask head
             masks (D, 1, M, M): probabilities over each box

The norms of the model are folded into its convolutions, unless TEST.INFERENCE_FORM is False.
TorchScript and torch.export run on the device that they are written on (MODEL.DEVICE). The names
and category ids of the classes are stored in each file, see d2_plugins.export.load_classes.

--weights-only writes the weights and the classes of a checkpoint, without the state of its
training, as a smaller .pth file; it takes no config and no photos.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.checkpointer import load_with_rest
from ..checkpoint.strip import strip_checkpoint
from ..data.classes import find_classes
from ..data.images import load_photo
from ..errors import UsageError, usage_errors
from ..export import ExportableDetector, check_paths, check_sizes, export_and_check
from ..modeling import inference_form
from .parsers import config_from, config_parser, exit_status, output_file

__all__ = ["main"]

_EXAMPLE = """
Examples:
    $ d2-plugins export --config-file csp_cascade.yaml --input photo.jpg \\
        --output model.onnx --output model.ts MODEL.WEIGHTS model_final.pth
    $ d2-plugins export --weights-only --output small.pth MODEL.WEIGHTS output/model_final.pth
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Export the detector of a config and compare the files with it.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0; 1 if a file finds other boxes; 2 after a mistake in the command line,
        the config, the weights or the photos.
    """
    parser = config_parser(__doc__, _EXAMPLE, required=False)
    repeatable: dict[str, Any] = {"action": "append", "metavar": "FILE"}
    parser.add_argument("--input", **repeatable, help="a photo; may be repeated")
    parser.add_argument(
        "--output",
        type=output_file,
        required=True,
        **repeatable,
        help="a file to write; may be repeated",
    )
    parser.add_argument("--box-tolerance", type=float, default=0.1, help="pixels (%(default)s)")
    parser.add_argument("--score-tolerance", type=float, default=1e-4, help="(%(default)s)")
    parser.add_argument(
        "--fixed-size",
        action="store_true",
        help="for images of the photo's padded size only (.pt2 and .onnx)",
    )
    parser.add_argument(
        "--weights-only", action="store_true", help="write the weights of a checkpoint as .pth"
    )
    args = parser.parse_args(argv)
    if args.weights_only:
        return exit_status(_strip, args)
    if not (args.config_file and args.input):
        parser.error("--config-file and --input are required")
    return exit_status(_run, args)


def _strip(args: argparse.Namespace) -> int:
    weights = config_from(args).MODEL.WEIGHTS
    if not weights:
        raise UsageError("MODEL.WEIGHTS is empty: name a checkpoint, MODEL.WEIGHTS model_final.pth")
    for path in args.output:
        strip_checkpoint(weights, path)
        sizes = [Path(file).stat().st_size / 1e6 for file in (weights, path)]
        print(f"wrote {path}: {sizes[1]:.1f} MB of {sizes[0]:.1f} MB")
    return 0


def _run(args: argparse.Namespace) -> int:
    cfg = config_from(args)
    with usage_errors():
        check_paths(args.output)
        images = [load_photo(cfg, path)[0] for path in args.input]
        model, checkpoint = load_with_rest(cfg)
        # The layout in memory is up to the runtime.
        form = inference_form(model, channels_last=False) if cfg.TEST.INFERENCE_FORM else model
        detector = ExportableDetector(form)
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
        classes=find_classes(cfg, checkpoint),
    )
    return 0 if same else 1
