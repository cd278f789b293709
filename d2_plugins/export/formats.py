"""Writing a detector as TorchScript, as a ``torch.export`` program and as ONNX; reading it back.

All three take images of any size, as :class:`~.detector.ExportableDetector` does; the latter two
can be written for a fixed size. TorchScript and ``torch.export`` programs stay on the device that
they were made on. Each file can hold the classes of the detector, see :func:`load_classes`.
"""

import importlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..data.classes import Classes
from .detector import OUTPUTS, ExportableDetector

__all__ = [
    "SUFFIXES",
    "capture",
    "check_paths",
    "check_sizes",
    "load_classes",
    "load_exported",
    "write",
]

SUFFIXES = {".ts": "TorchScript", ".pt2": "torch.export", ".onnx": "ONNX"}
# The adaptive convolution becomes a DeformConv, which opset 19 introduced.
_OPSET = 20
# Name of the classes within a file.
_CLASSES = "classes.json"

Program = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


def check_paths(paths: Sequence[str | Path]) -> None:
    """Refuse formats that are unknown or cannot be written here, before the export starts.

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
    """Refuse images that the exported programs would not accept.

    Args:
        detector: what to export.
        images: (3, H, W) each, not padded.
        paths: files to write.
        fixed_size: export for images of one size only.

    Raises:
        ValueError: with a fixed size, the images differ in their padded size; without, the model
            has layers whose sizes ``torch.export`` cannot follow in finite time.
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
    """Return the detector as a ``torch.export`` program.

    Args:
        detector: detector to export.
        image: example image (3, H, W).
        fixed_size: accept images of this padded size only, instead of any size.
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
    classes: Classes | None = None,
) -> None:
    """Write the detector in the formats that the suffixes name.

    Args:
        detector: detector to export.
        image: example image (3, H, W) on the detector's device.
        paths: files to write.
        fixed_size: see :func:`capture`; TorchScript accepts any size in either case.
        classes: names and category ids to store in the files.

    Raises:
        ValueError, ImportError: as :func:`check_paths` and :func:`check_sizes`.
    """
    check_paths(paths)
    check_sizes(detector, [image], paths, fixed_size=fixed_size)
    extra = {_CLASSES: json.dumps(classes.state_dict())} if classes else {}
    program = None
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".ts":
            with warnings.catch_warnings():
                # The warnings are about sizes that are the same in every image.
                warnings.simplefilter("ignore", torch.jit.TracerWarning)
                inputs = detector.pad_input(image)
                traced = torch.jit.trace(detector, inputs, check_trace=False)
                torch.jit.save(traced, str(path), _extra_files=extra)
            continue
        program = program or capture(detector, image, fixed_size=fixed_size)
        if path.suffix == ".pt2":
            torch.export.save(program, path, extra_files=extra)
        else:
            _write_onnx(program, path, extra)


def _write_onnx(program: ExportedProgram, path: Path, extra: dict[str, str]) -> None:
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
    written.model.metadata_props.update(extra)
    written.save(path)


def load_exported(path: str | Path) -> Program:
    """Read a file of :func:`write`; ONNX runs on ONNX Runtime, on the CPU.

    Args:
        path: the exported file.

    Returns:
        A function of a padded image and its size, see :func:`~.detector.pad_input`, that returns
        boxes, scores, classes and, for a model with masks, masks.

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


def load_classes(path: str | Path) -> Classes | None:
    """Read the classes that :func:`write` has stored in a file; None if there are none.

    Args:
        path: the exported file.

    Raises:
        ValueError, ImportError: as :func:`check_paths`.
    """
    check_paths([path])
    path = Path(path)
    stored: dict[str, Any] = {_CLASSES: ""}
    if path.suffix == ".ts":
        torch.jit.load(str(path), _extra_files=stored)
    elif path.suffix == ".pt2":
        torch.export.load(path, extra_files=stored)
    else:
        metadata = _require("onnx").load(str(path), load_external_data=False).metadata_props
        stored.update({entry.key: entry.value for entry in metadata})
    return Classes.from_state(json.loads(stored[_CLASSES] or "null"))


def _require(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"ONNX needs {name}: pip install 'd2_plugins[export]'", name=name
        ) from error
