"""Detectors as TorchScript, ``torch.export`` programs and ONNX, checked against the model."""

from .detector import ExportableDetector, pad_input
from .formats import check_paths, check_sizes, load_classes, load_exported, write
from .parity import Difference, compare, detect, export_and_check

__all__ = [
    "Difference",
    "ExportableDetector",
    "check_paths",
    "check_sizes",
    "compare",
    "detect",
    "export_and_check",
    "load_classes",
    "load_exported",
    "pad_input",
    "write",
]
