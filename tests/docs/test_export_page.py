"""The script of docs/export.md finds what the model finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

from d2_plugins.data.classes import Classes
from d2_plugins.export import ExportableDetector, compare, write
from tests.docs.markdown import blocks
from tests.support.export_models import PLAIN, image, small_model

CLASSES = Classes(("a", "b", "c", "d", "e"), (1, 2, 3, 4, 5))


@pytest.mark.slow
def test_onnx_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (script,) = blocks("docs/export.md", "python")
    model = small_model(PLAIN)
    monkeypatch.chdir(tmp_path)
    write(
        ExportableDetector(model), image(128, 96), [Path("output/demo/model.onnx")], classes=CLASSES
    )
    photo = image(150, 211).permute(1, 2, 0).numpy().astype(np.uint8)
    Image.fromarray(photo).save("photo.jpg", quality=100, subsampling=0)
    found: dict[str, np.ndarray] = {}
    exec(compile(script.text, "docs/export.md", "exec"), found)  # noqa: S102
    assert Image.open("detected.jpg").size == (211, 150)

    read = np.asarray(Image.open("photo.jpg"))
    resized = ResizeShortestEdge(128, 128).get_transform(read).apply_image(read)
    inputs = torch.from_numpy(resized.copy()).permute(2, 0, 1).float()
    with torch.no_grad():
        (output,) = model([{"image": inputs, "height": 150, "width": 211}])
    expected = output["instances"]
    assert len(expected) > 20
    outputs = [torch.from_numpy(found[name]) for name in ("boxes", "scores", "classes")]
    assert compare(expected, outputs).within(box=0.1, score=1e-4)
