"""Every format, written, read back and run on images of other sizes and content."""

import sys
from pathlib import Path

import pytest
from torch import nn

from d2_plugins.data.classes import Classes
from d2_plugins.export import (
    ExportableDetector,
    check_paths,
    check_sizes,
    compare,
    detect,
    export_and_check,
    load_classes,
    load_exported,
    write,
)
from tests.support.export_models import FLAGSHIP, MASK, PLAIN, SELECTIVE, image, small_model

CLASSES = Classes(("a cat", "\N{SNOWMAN}"), (3, 7))


def assert_same(detector: ExportableDetector, model: nn.Module, path: Path) -> None:
    program = load_exported(path)
    for seed, (height, width) in enumerate(((96, 128), (120, 101), (200, 161)), start=1):
        other = image(height, width, seed)
        difference = compare(detect(model, other), program(*detector.pad_input(other)))
        assert difference.detections > 20
        assert difference.within(box=0.1, score=1e-4), (path.name, difference)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "opts"), [(PLAIN, ()), (FLAGSHIP, (*MASK, *SELECTIVE))])
def test_every_format(config: str, opts: tuple[object, ...], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = small_model(config, opts)
    detector = ExportableDetector(model)
    paths = [tmp_path / "new" / f"model{suffix}" for suffix in (".ts", ".pt2", ".onnx")]
    write(detector, image(130, 150), paths, classes=CLASSES)
    for path in paths:
        assert load_classes(path) == CLASSES
        assert_same(detector, model, path)
    session = onnxruntime.InferenceSession(str(paths[-1]))
    assert [x.name for x in session.get_inputs()] == ["image", "size"]
    names = ["boxes", "scores", "classes", "masks"]
    assert [x.name for x in session.get_outputs()] == (names if opts else names[:3])
    assert all(isinstance(side, str) for side in session.get_inputs()[0].shape[1:])  # free


@pytest.mark.slow
def test_fixed_size(tmp_path: Path) -> None:
    """The only way for TensorFlow's padding, and refused otherwise; tracing follows it."""
    model = small_model("PennFudan/faster_rcnn_efficientnet_lite0.yaml", ("MODEL.FPN.NORM", ""))
    detector = ExportableDetector(model)
    path = tmp_path / "model.pt2"
    refusal = r"backbone.*Conv2dSame\) can be exported .* fixed size only \(--fixed-size\)"
    with pytest.raises(ValueError, match=refusal):
        write(detector, image(96, 128), [path])
    check_sizes(detector, [image(96, 128)], ["model.ts"], fixed_size=False)
    two = [image(96, 128), image(96, 140)]
    with pytest.raises(ValueError, match=r"one padded size, not of \[\(96, 128\), \(96, 160\)\]"):
        check_sizes(detector, two, [path], fixed_size=True)
    assert export_and_check(
        detector, model, [image(120, 150), image(100, 130, 1)], [path], fixed_size=True,
        classes=CLASSES,
    )  # fmt: skip
    assert load_classes(path) == CLASSES


def test_torchscript_with_and_without_classes(tmp_path: Path) -> None:
    detector = ExportableDetector(small_model(PLAIN))
    path = tmp_path / "model.ts"
    write(detector, image(96, 128), [path], classes=CLASSES)
    assert load_classes(path) == CLASSES
    write(detector, image(96, 128), [path])
    assert load_classes(path) is None


def test_unknown_suffix() -> None:
    with pytest.raises(ValueError, match=r"model\.pb: .*\.ts \(TorchScript\).*\.onnx \(ONNX\)"):
        check_paths(["a.onnx", "model.pb"])


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    check_paths(["model.ts", "model.pt2"])
    with pytest.raises(ImportError, match=rf"ONNX needs {missing}: pip install .*\[export\]"):
        check_paths(["model.onnx"])
