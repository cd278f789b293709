"""Required entries of a weights file, the summary, and detectron2's behaviour underneath."""

import logging
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import save_file
from torch import Tensor, nn

from d2_plugins.checkpoint import PluginCheckpointer
from d2_plugins.checkpoint.cspnet_weights import convert_darknet_cspnet
from d2_plugins.errors import IncompleteWeightsError
from d2_plugins.modeling.backbone import CSPNet
from tests.support.checkpoint_models import clones, detector, resnet
from tests.support.helpers import randomise_norms

BOTTOM_UP = "backbone.bottom_up."


def _save(state: dict[str, Tensor], folder: Path, name: str = "weights.pth") -> str:
    path = str(folder / name)
    torch.save(state, path)
    return path


def _init(model: nn.Module, path: str, **options: object) -> None:
    """Load weights to start a training from."""
    PluginCheckpointer(model, **options).load(path, checkpointables=[])


class TestCompleteness:
    """A backbone must be filled to start training, everything to evaluate."""

    @pytest.fixture(scope="class")
    def imagenet(self) -> dict[str, Tensor]:
        return randomise_norms(torchvision.models.resnet18()).state_dict()

    def test_imagenet_weights_start_a_training(
        self, imagenet: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = _save(imagenet, tmp_path)
        with caplog.at_level(logging.INFO):
            _init(detector("eca"), path)
        summary = next(m for m in caplog.messages if m.startswith("Weights from"))
        assert summary.splitlines() == [
            f"Weights from {path}: 100 of 136 entries of the model filled",
            "  not in the file: backbone.*.attention (8), backbone.fpn_lateral (8), "
            "backbone.fpn_output (8), proposal_generator.rpn_head (6), roi_heads.box_head (2), "
            "roi_heads.box_predictor (4)",
            "  not in the model: backbone.bottom_up.linear (2)",
        ]

    def test_imagenet_weights_are_not_evaluated(self, imagenet: dict, tmp_path: Path) -> None:
        model = detector().eval()
        with pytest.raises(IncompleteWeightsError, match="entries of the model keep their initial"):
            _init(model, _save(imagenet, tmp_path))
        _init(model, _save(imagenet, tmp_path), allow_missing=["*"])

    def test_a_hole_in_the_backbone_is_an_error(self, imagenet: dict, tmp_path: Path) -> None:
        holed = {k: v for k, v in imagenet.items() if not k.startswith("layer3.0.bn1")}
        path = _save(holed, tmp_path)
        with pytest.raises(
            IncompleteWeightsError,
            match=r"2 entries of the backbone .*res4.0.conv1.norm.*"
            r"MODEL.WEIGHTS_ALLOW_MISSING, for example \['backbone.bottom_up.res4\*'\]",
        ):
            _init(detector(), path)
        _init(detector(), path, allow_missing=["backbone.bottom_up.res4*"])
        with pytest.raises(IncompleteWeightsError):
            _init(detector(), path, allow_missing=["backbone.bottom_up.res5*"])

    def test_weights_of_another_depth_are_an_error(self, imagenet: dict, tmp_path: Path) -> None:
        with pytest.raises(IncompleteWeightsError, match=r"of another shape: res2.0.conv1.weight"):
            _init(resnet(50), _save(imagenet, tmp_path))

    def test_a_file_of_something_else_is_an_error(self, tmp_path: Path) -> None:
        path = _save({"encoder.weight": torch.zeros(2)}, tmp_path)
        with pytest.raises(IncompleteWeightsError, match=r"not in the model: .*encoder \(1\)"):
            _init(detector(), path)

    def test_half_of_the_attention_is_an_error(self, tmp_path: Path) -> None:
        state = clones(resnet(18, "eca"))
        gone = [name for name in state if ".attention." in name][:2]
        for name in gone:
            del state[name]
        with pytest.raises(IncompleteWeightsError, match=f"2 entries of the backbone.*{gone[0]}"):
            _init(resnet(18, "eca"), _save(state, tmp_path))

    def test_a_detector_for_other_classes_starts_a_training(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = _save(clones(detector(num_classes=80)), tmp_path)
        model = detector(num_classes=3)
        predictor = clones(model.roi_heads.box_predictor)
        _init(model, path)
        assert r"cls_score.weight (81, 16) in the file, (4, 16) here" in caplog.text
        assert all(
            torch.equal(value, predictor[name])
            for name, value in model.roi_heads.box_predictor.state_dict().items()
        )
        with pytest.raises(IncompleteWeightsError, match=r"roi_heads.box_predictor"):
            _init(model.eval(), path)

    def test_a_resumed_run_must_find_everything(self, tmp_path: Path) -> None:
        old, new = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        optimizer = torch.optim.SGD(old.parameters(), 0.1)
        PluginCheckpointer(new, str(tmp_path), optimizer=optimizer).save("model_final")
        checkpointer = PluginCheckpointer(old, str(tmp_path), optimizer=optimizer)
        with pytest.raises(IncompleteWeightsError, match="bias"):
            checkpointer.resume_or_load("", resume=True)

    def test_tied_weights_count_once(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[1].weight = model[0].weight
        state = clones(model)
        del state["1.weight"]
        _init(model.eval(), _save(state, tmp_path))


def test_a_failed_load_does_not_bar_the_next(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    good = _save(clones(model), tmp_path)
    checkpointer = PluginCheckpointer(model)
    with pytest.raises(IncompleteWeightsError):
        checkpointer.load(_save({"x": torch.zeros(1)}, tmp_path, "bad.pth"))
    checkpointer.load(good)


@pytest.mark.parametrize("extension", [".pth", ".safetensors"])
@pytest.mark.parametrize("part", ["model", "bottom_up"])
def test_own_weights_of_the_model_or_its_backbone(
    extension: str, part: str, tmp_path: Path
) -> None:
    source = randomise_norms(detector("cbam"))
    expected = clones(source)
    state = clones(source.backbone.bottom_up if part == "bottom_up" else source)
    path = f"{tmp_path}/weights{extension}"
    (save_file if extension == ".safetensors" else torch.save)(state, path)
    model = detector("cbam")
    if part == "model":
        model.eval()
    _init(model, path)
    for name, value in model.state_dict().items():
        if part == "model" or name.startswith(BOTTOM_UP):
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("how", ["pkl", "query"])
def test_matching_heuristics_as_in_detectron2(how: str, tmp_path: Path) -> None:
    """Zoo files hold the backbone under names without a prefix, and a classifier."""
    source = randomise_norms(resnet())
    state = {name: value.numpy() for name, value in source.state_dict().items()}
    state["stem.fc.weight"] = torch.zeros(2, 2).numpy()
    path = str(tmp_path / f"R-18.{'pkl' if how == 'pkl' else 'pth'}")
    if how == "pkl":
        zoo = {"model": state, "__author__": "torchvision", "matching_heuristics": True}
        Path(path).write_bytes(pickle.dumps(zoo))
    else:
        torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
        path += "?matching_heuristics=True"
    ours, stock = detector(), detector()
    PluginCheckpointer(ours).load(path, checkpointables=[])
    DetectionCheckpointer(stock).load(path, checkpointables=[])
    for name, value in source.state_dict().items():
        assert torch.equal(ours.state_dict()[BOTTOM_UP + name], value)
        assert torch.equal(stock.state_dict()[BOTTOM_UP + name], value)


def test_an_unknown_query_is_refused_as_in_detectron2(tmp_path: Path) -> None:
    path = _save(clones(nn.Linear(2, 2)), tmp_path)
    with pytest.raises(ValueError, match="Unsupported query"):
        PluginCheckpointer(nn.Linear(2, 2)).load(f"{path}?heuristics=True")


def test_no_weights_load_nothing() -> None:
    assert PluginCheckpointer(nn.Linear(2, 2).eval()).load("") == {}


class TestDarknet:
    """A file for CSPDarkNet-53, through the checkpointer."""

    @pytest.fixture(scope="class")
    def weights(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Tensor]]:
        with torch.device("meta"):
            model = CSPNet(arch="cspdarknet53")
        count = sum(
            value.numel() for name, value in model.state_dict().items() if "num_batches" not in name
        )
        values = torch.rand(count)
        path = tmp_path_factory.mktemp("darknet") / "csdarknet53.weights"
        header = torch.tensor([0, 2, 5, 0, 0], dtype=torch.int32)
        path.write_bytes(header.numpy().tobytes() + values.numpy().tobytes())
        return str(path), convert_darknet_cspnet(values, "cspdarknet53")

    def test_fills_a_cspdarknet(self, weights: tuple[str, dict]) -> None:
        path, expected = weights
        model = CSPNet(arch="cspdarknet53", leaky_slope=0.1, norm="FrozenBN")
        _init(model, path)
        state = model.state_dict()
        assert len(expected) == len(state)
        assert all(torch.equal(state[name], value) for name, value in expected.items())

    def test_wants_its_slope(self, weights: tuple[str, dict]) -> None:
        with pytest.raises(ValueError, match=r"LEAKY_SLOPE is 0.01; with darknet's weights.* 0.1"):
            _init(CSPNet(arch="cspdarknet53"), weights[0])

    @pytest.mark.parametrize(
        "build", [resnet, lambda: CSPNet(arch="cspdarknet53", width_multiplier=0.5)]
    )
    def test_wants_its_architecture(self, build: object, weights: tuple[str, dict]) -> None:
        with pytest.raises(ValueError, match=r"darknet weights fit MODEL.CSPNET.ARCH cspdarknet53"):
            _init(build(), weights[0])


def test_timm_weights_want_their_slope(tmp_path: Path) -> None:
    state = {"stem.conv1.conv.weight": torch.zeros(1), "stages.0.conv_exp.conv.weight": Tensor()}
    with pytest.raises(ValueError, match=r"LEAKY_SLOPE is 0.1; with timm's weights .* 0.01"):
        _init(CSPNet(arch="cspresnet50", leaky_slope=0.1), _save(state, tmp_path))
