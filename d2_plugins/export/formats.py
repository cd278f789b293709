"""Writing a detector as TorchScript, as a program of ``torch.export`` and as ONNX; reading it back.

All three take images of any size, as :class:`~.detector.ExportableDetector` does. TorchScript is
traced and keeps the device it was traced on.
"""

import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from .detector import OUTPUTS, ExportableDetector

__all__ = ["SUFFIXES", "capture", "check_paths", "load_exported", "write"]

SUFFIXES = {".ts": "TorchScript", ".pt2": "torch.export", ".onnx": "ONNX"}
# DeformConv, which the adaptive convolution becomes, came with 19.
_OPSET = 20

Program = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def check_paths(paths: Sequence[str | Path]) -> None:
    """Refuse formats that are unknown or cannot be written here, before the long work.

    Raises:
        ValueError: a suffix is not one of ``SUFFIXES``.
        ImportError: ONNX is asked for and a library is missing; the message says how to get it.
    """
    for path in map(Path, paths):
        if path.suffix not in SUFFIXES:
            known = ", ".join(f"{suffix} ({name})" for suffix, name in SUFFIXES.items())
            raise ValueError(f"{path}: the suffix says the format and must be one of {known}")
        if path.suffix == ".onnx":
            for name in ("onnx", "onnxscript", "onnxruntime"):
                _require(name)


def capture(detector: ExportableDetector, image: Tensor) -> ExportedProgram:
    """The detector as a program of ``torch.export``, for images of any size.

    Args:
        detector: what to export.
        image: (3, H, W), an example.
    """
    inputs = detector.pad_input(image)
    divisor, least_side = detector.divisor, detector.least_side
    sides = [divisor * Dim(name, min=least_side // divisor) for name in ("rows", "columns")]
    shapes = ({1: sides[0], 2: sides[1]}, None)
    return torch.export.export(detector, inputs, dynamic_shapes=shapes, strict=False)


def write(detector: ExportableDetector, image: Tensor, paths: Sequence[str | Path]) -> None:
    """Write the detector in the formats that the suffixes name.

    Args:
        detector: what to export.
        image: (3, H, W), an example on the detector's device; what is written is not bound to its
            size.
        paths: files to write.

    Raises:
        ValueError, ImportError: as :func:`check_paths`.
    """
    check_paths(paths)
    program = None
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ts":
            with warnings.catch_warnings():
                # Of sizes that are the same in every image.
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                inputs = detector.pad_input(image)
                torch.jit.trace(detector, inputs, check_trace=False).save(str(path))
            continue
        program = program or capture(detector, image)
        if path.suffix == ".pt2":
            torch.export.save(program, path)
        else:
            _write_onnx(program, path)


def _write_onnx(program: ExportedProgram, path: Path) -> None:
    op = _require("onnxscript").opset20

    def sym_numel(x: Any) -> Any:
        return op.Size(x)

    outputs = len(program.graph_signature.user_outputs)
    written = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=_OPSET,
        input_names=["image", "size"],
        output_names=OUTPUTS[:outputs],
        # Comes from detectron2's ROIPooler; the exporter does not know it.
        custom_translation_table={torch.ops.aten.sym_numel.default: sym_numel},
        verbose=False,
    )
    assert written is not None  # with dynamo
    written.save(path)


def load_exported(path: str | Path) -> Program:
    """Read a file of :func:`write` back; ONNX runs on ONNX Runtime, on the CPU.

    Args:
        path: the file.

    Returns:
        A function of a padded image and its size, see :func:`~.detector.pad_input`, that returns
        boxes, scores, classes and perhaps masks.

    Raises:
        ValueError, ImportError: as :func:`check_paths`.
    """
    check_paths([path])
    path = Path(path)
    if path.suffix == ".ts":
        return torch.jit.load(str(path))
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    session = _require("onnxruntime").InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )

    def run(image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, {"image": image.cpu().numpy(), "size": size.cpu().numpy()})
        return tuple(map(torch.from_numpy, outputs))

    return run


def _require(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"ONNX needs {name}: pip install 'd2_plugins[export]'", name=name
        ) from error
