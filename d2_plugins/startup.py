"""First line of a command, and the messages of other libraries that commands do not show.

Imports the standard library only, because it runs before torch and detectron2 are imported.
"""

import logging
import os
import sys
import warnings

__all__ = ["announce", "hide_messages"]

# Warnings about code of detectron2, torch and torchvision, which a user of the commands can do
# nothing about.
_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, "`torch.jit.script` is deprecated"),
    (FutureWarning, "`broadcast_buffers` is deprecated"),
    (FutureWarning, "`create_unbacked_symint` is deprecated"),
    (UserWarning, "torch.meshgrid"),
)
# Messages of loggers: what they begin with, by logger.
_MESSAGES = {
    "torch.fx._symbolic_trace": "is_fx_tracing will return true",
    "torch.utils.cpp_extension": "No CUDA runtime is found, using CUDA_HOME",
    # A constant that could not be folded stays in the graph, which is complete without that.
    "onnxscript.optimizer._constant_folding": "Evaluation failed",
}


def announce(command: str) -> None:
    """Print one line to stderr before the imports of a command, which take seconds.

    Args:
        command: name of the command.
    """
    if "torch" not in sys.modules:
        print(f"d2-plugins {command}: loading PyTorch and detectron2 ...", file=sys.stderr)
        sys.stderr.flush()


def hide_messages() -> None:
    """Hide a few messages of other libraries, each recognized by its text.

    It applies to this process. Processes that it starts inherit the warnings, not the loggers.
    """
    options = [option for option in os.environ.get("PYTHONWARNINGS", "").split(",") if option]
    for category, text in _WARNINGS:
        warnings.filterwarnings("ignore", message=text.replace(".", r"\."), category=category)
        option = f"ignore:{text}:{category.__name__}"
        if option not in options:
            options.append(option)
    os.environ["PYTHONWARNINGS"] = ",".join(options)
    for name in _MESSAGES:
        logging.getLogger(name).addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_MESSAGES[record.name])
