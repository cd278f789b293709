"""Writing a detector as TorchScript, as a program of ``torch.export`` and as ONNX; reading it back.

All three take images of any size, as :class:`~.detector.ExportableDetector` does; the latter two of
one size if asked to. TorchScript and ``torch.export`` keep the device they were made on.
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

__all__ = ["SUFFIXES", "capture", "check_paths", "check_sizes", "load_exported", "write"]

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


def check_sizes(
    detector: ExportableDetector,
    images: Sequence[Tensor],
    paths: Sequence[str | Path],
    *,
    fixed_size: bool,
) -> None:
    """Refuse images that the programs to be written would not take.

    Args:
        detector: what to export.
        images: (3, H, W) each, not padded.
        paths: files to write.
        fixed_size: whether for images of one size.

    Raises:
        ValueError: with a fixed size, the images differ in their padded size; without, the model
            has layers whose sizes ``torch.export`` reasons about without coming to an end.
    """
    if all(Path(path).suffix == ".ts" for path in paths):
        return
    if fixed_size:
        sizes = sorted({tuple(detector.pad_input(image)[0].shape[1:]) for image in images})
        if len(sizes) > 1:
            raise ValueError(f"a fixed size needs images of one padded size, not of {sizes}")
        return
    from timm.layers import Conv2dSame

    for name, layer in detector.model.named_modules():
        if isinstance(layer, Conv2dSame):
            raise ValueError(
                f"{name}: TensorFlow's 'same' padding (timm's Conv2dSame) can be "
                "exported as .pt2 or .onnx with a fixed size only (--fixed-size)"
            )


def capture(
    detector: ExportableDetector, image: Tensor, *, fixed_size: bool = False
) -> ExportedProgram:
    """The detector as a program of ``torch.export``.

    Args:
        detector: what to export.
        image: (3, H, W), an example.
        fixed_size: for images of this padded size only, else of any.
    """
    inputs = detector.pad_input(image)
    if fixed_size:
        return torch.export.export(detector, inputs, strict=False)
    divisor, least_side = detector.divisor, detector.least_side
    sides = [divisor * Dim(name, min=least_side // divisor) for name in ("rows", "columns")]
    shapes = ({1: sides[0], 2: sides[1]}, None)
    return torch.export.export(detector, inputs, dynamic_shapes=shapes, strict=False)


def write(
    detector: ExportableDetector,
    image: Tensor,
    paths: Sequence[str | Path],
    *,
    fixed_size: bool = False,
) -> None:
    """Write the detector in the formats that the suffixes name.

    Args:
        detector: what to export.
        image: (3, H, W), an example on the detector's device.
        paths: files to write.
        fixed_size: see :func:`capture`; TorchScript takes any size all the same.

    Raises:
        ValueError, ImportError: as :func:`check_paths` and :func:`check_sizes`.
    """
    check_paths(paths)
    check_sizes(detector, [image], paths, fixed_size=fixed_size)
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
        program = program or capture(detector, image, fixed_size=fixed_size)
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
