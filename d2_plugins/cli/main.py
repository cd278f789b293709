"""The ``d2-plugins`` command: finds the module of a command and runs its ``main``.

This module imports nothing but the standard library until a command is chosen.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import nearest
from ..startup import announce, hide_messages

__all__ = ["COMMANDS", "main"]

# The module of a command is d2_plugins.cli.<name>, with underscores for hyphens.
COMMANDS = {
    "train": "train or evaluate a detector",
    "predict": "detect objects in images, a video or a webcam's frames",
    "prepare": "download and convert datasets, or render the embedded one",
    "check": "check a COCO dataset before training",
    "analyze": "parameters, FLOPs, activations and latency of a detector, by part",
    "export": "write a detector as TorchScript, torch.export or ONNX, and compare its results",
    "push": "publish a detector on the Hugging Face Hub, with a model card",
    "benchmark": "time the components against alternatives",
    "visualize-data": "draw a dataset's annotations or augmented training samples",
    "visualize-proposals": "draw the stages of Cascade RPN on a photo",
    "visualize-attention": "draw what Inverted Attention hides of the objects in a photo",
    "plot-runs": "draw losses and APs of several training runs side by side",
    "demo": "train a small detector on the embedded dataset, on a CPU in minutes",
    "train-lazy": "train or evaluate a detector of a LazyConfig (a Python config)",
}

_WITHOUT_OPENCV = (
    "OpenCV is missing, which detectron2's visualizer needs: pip install opencv-python-headless"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command named by the first argument.

    Args:
        argv: name of a command and its arguments; None for those of the process.

    Returns:
        The exit status: that of the command, 2 for an unknown command or without OpenCV, 130 after
        Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        print(_refusal(name), file=sys.stderr)
        return 2
    announce(name)
    hide_messages()
    sys.argv[0] = f"d2-plugins {name}"  # the program name in argparse's messages
    try:
        command = import_module(f"d2_plugins.cli.{name.replace('-', '_')}")
        status: int = command.main(words[1:])
    except KeyboardInterrupt:  # during the imports; commands handle it themselves
        print("interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name != "cv2":
            raise
        print(f"error: {_WITHOUT_OPENCV}", file=sys.stderr)
        return 2
    return status


def _help() -> str:
    lines = [f"  {name:20} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: d2-plugins <command> [options]",
            "",
            "CSPNet, Cascade RPN, Double-Head and Inverted Attention for detectron2.",
            "",
            "commands:",
            *lines,
            "",
            "'d2-plugins <command> --help' describes the options of a command.",
        ]
    )


def _refusal(name: str) -> str:
    if not name:
        return "error: no command is given; 'd2-plugins --help' lists them"
    return f"error: there is no command '{name}'. Nearest: {nearest(name, COMMANDS)}"
