"""Detect objects in images, a video or a webcam's pictures, and draw them.

Pictures are written to the folder --output under the names of their images, a video under its name
with .mp4. --json writes all detections in COCO's result format; image_id is the number of the image
among the inputs, or of the frame, from 0, and file_name the file. Class names are those of the
config's datasets. --track numbers the objects of a video, or of --input files that are the frames
of one, so that each keeps its number: it is drawn, and written as track_id (null until the object
is found in a second frame). Images that cannot be read or drawn are reported and skipped; the
exit status is then 1. A video ends at the first frame that cannot be decoded, a webcam with Ctrl-C.
"""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.classes import Classes
from ..errors import UsageError, usage_errors
from ..files import atomic_write_json
from ..visualization.detect_images import detect_images, find_images, picture_paths
from ..visualization.detect_video import detect_video
from ..visualization.detector import Detector
from ..visualization.tracking import LOWEST_SCORE, Tracker
from ..visualization.video import VideoFile, VideoSource, video_path
from ..visualization.window import Window
from .parsers import config_from, config_parser, exit_status, output_file

__all__ = ["main"]

_EXAMPLE = """
Examples:
    $ d2-plugins predict --config-file output/config.yaml --input photos/ "more/*.jpg" \\
        --output detected --json detected.json MODEL.WEIGHTS output/model_final.pth
    $ d2-plugins predict --config-file output/config.yaml --video-input street.mp4 \\
        --output detected --track --json tracks.json --confidence-threshold 0.7 \\
        MODEL.WEIGHTS output/model_final.pth
    $ d2-plugins predict --config-file output/config.yaml --webcam --show \\
        MODEL.WEIGHTS output/model_final.pth
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Detect objects in images, a video or a webcam's frames.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0; 1 if an image could not be read or drawn; 2 after a mistake in the
        command line, the config or the weights.
    """
    parser = config_parser(__doc__, _EXAMPLE)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="IMAGE", help="images, folders, quoted glob patterns"
    )
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument("--webcam", action="store_true", help="the first camera")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="draw pictures or a video")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the detections")
    parser.add_argument("--show", action="store_true", help="in a window; Escape or q ends it")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="leave out objects with a lower score (%(default)s)",
    )
    parser.add_argument(
        "--track",
        action="store_true",
        help="number the objects over the frames; those that are already numbered are followed "
        f"down to a score of {LOWEST_SCORE}",
    )
    parser.add_argument(
        "--classes-from",
        metavar="FILE",
        help="COCO json whose categories the model knows, for data of your own",
    )
    args = parser.parse_args(argv)
    if not (args.output or args.json or args.show):
        parser.error("nothing to do: give --output, --json or --show")
    if not 0 <= args.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold is {args.confidence_threshold}; allowed: 0 to 1")
    return exit_status(_run, args)


def _run(args: argparse.Namespace) -> int:
    # Mistakes in the paths show up before the model is built.
    folder: Path | None = args.output
    if folder and folder.exists() and not folder.is_dir():
        raise UsageError(f"--output: '{folder}' is not a folder")
    window = Window("detections") if args.show else None
    num_unreadable = 0
    if args.input:
        paths = find_images(args.input)
        pictures = picture_paths(paths, folder) if folder else [None] * len(paths)
        images = dict(zip(paths, pictures, strict=True))
        tracker = _build_tracker(args) if args.track else None
        rows, num_unreadable = detect_images(images, _build_detector(args), window, tracker)
    else:
        rows = _run_video(args, window)
    if not rows and not num_unreadable:
        print(
            f"no object has a score of {args.confidence_threshold:g} or more; a lower "
            "--confidence-threshold shows less certain ones"
        )
    if args.json:
        atomic_write_json(args.json, rows)
        print(f"wrote {args.json}: {len(rows)} objects")
    return 1 if num_unreadable else 0


def _run_video(args: argparse.Namespace, window: Window | None) -> list[dict[str, Any]]:
    with contextlib.closing(VideoSource(0 if args.webcam else args.video_input)) as source:
        tracker = _build_tracker(args, source.fps) if args.track else None
        if not args.output:
            return detect_video(source, _build_detector(args), window=window, tracker=tracker)
        path = video_path(source, args.output)
        detector = _build_detector(args)
        with VideoFile(path, source.fps) as video:
            rows = detect_video(source, detector, video, window, tracker)
    print(f"wrote {path}: {video.num_frames} frames")
    return rows


def _build_detector(args: argparse.Namespace) -> Detector:
    with usage_errors("--classes-from"):
        classes = Classes.from_json(args.classes_from) if args.classes_from else None
    confidence = args.confidence_threshold
    if args.track:  # the tracker leaves out what it does not follow
        confidence = min(confidence, LOWEST_SCORE)
    return Detector(config_from(args), confidence=confidence, classes=classes)


def _build_tracker(args: argparse.Namespace, fps: float = 30.0) -> Tracker:
    with usage_errors("--track"):
        return Tracker(args.confidence_threshold, fps)
