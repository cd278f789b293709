import re
import runpy
from pathlib import Path

import detectron2
import pytest
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.overrides import TorchFunctionMode

from d2_plugins import model_zoo
from dev import zoo_page as zoo
from dev.zoo_page import (
    Entry,
    Measured,
    baseline_cfg,
    check_entries,
    count_parameters,
    format_page,
    measure,
    read_entries,
    read_measured,
    trainable_configs,
)
from tests.support.helpers import REPO

DOCS = REPO / "docs"
TOOL = REPO / "dev" / "make_zoo.py"
CONFIGS_AT = "../configs"


class NoDraws(TorchFunctionMode):
    """Leaves tensors that would be filled with random numbers as they are: quicker to build."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def page() -> str:
    return (DOCS / "model_zoo.md").read_text(encoding="utf-8")


def test_every_config_has_an_entry_and_every_entry_a_config() -> None:
    check_entries(read_entries(DOCS / "zoo.yaml"), trainable_configs())


def test_page_is_what_the_entries_give() -> None:
    entries = read_entries(DOCS / "zoo.yaml")
    measured = read_measured(page(), configs_at=CONFIGS_AT)
    assert set(measured) == set(entries), "run dev/make_zoo.py"
    assert format_page(entries, measured, configs_at=CONFIGS_AT) == page(), (
        "run dev/make_zoo.py --only"
    )


@pytest.mark.parametrize("name", trainable_configs())
def test_parameters_on_the_page(name: str) -> None:
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    written = read_measured(page(), configs_at=CONFIGS_AT)[name].parameters
    with NoDraws():
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    assert written == count_parameters(model), f"run dev/make_zoo.py: {name}"


def test_links_of_the_page_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)]+)\)", page())
    assert len(links) >= len(trainable_configs())
    assert all((DOCS / link).is_file() for link in links)


def test_bases_are_left_out() -> None:
    names = trainable_configs()
    assert "csp_cascade.yaml" in names
    assert not [name for name in names if "Base-" in name]


def test_missing_entry_and_missing_config_are_named() -> None:
    with pytest.raises(ValueError, match=r"without an entry: b; entries without a config: c"):
        check_entries({"a": Entry("x"), "c": Entry("x")}, ["a", "b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {what: x, figure: AP 1}", "'source' go together"),
        ("a: {what: x, ours: AP 1}", "'command' go together"),
        ("a: {what: ''}", "'what' must"),
        ("a: {what: x, no_such: 1}", "a: .*no_such"),
    ],
)
def test_entries_without_source_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "zoo.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_entries(tmp_path / "zoo.yaml")


def test_page_can_be_read_back() -> None:
    measured = {
        "b/c.yaml": Measured("1.00", "64 x 96", "100", "2.5", "0.97"),
        "a.yaml": Measured("2.00", "64 x 96", "", "2.5", ""),
    }
    entries = {
        "b/c.yaml": Entry("C.", "AP 1", "someone", "AP 2", "tools/train_net.py"),
        "a.yaml": Entry("A."),
    }
    text = format_page(entries, measured, configs_at="x")
    assert read_measured(text, configs_at="x") == measured
    assert "AP 1 (someone) | AP 2 (`tools/train_net.py`)" in text
    assert text.index("[a]") < text.index("## b") < text.index("[c]")


def test_measured_config() -> None:
    measured = measure("Demo/faster_rcnn.yaml")
    assert measured.image == "128 x 128"
    assert measured.rois == "100"
    assert float(measured.gflops) > 0
    assert measured.time == ""


def test_time_is_a_ratio_to_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "Demo/faster_rcnn.yaml"
    monkeypatch.setattr(zoo, "baseline_cfg", lambda: model_zoo.get_config(name))
    assert re.fullmatch(r"\d+\.\d\d", measure(name, repeats=1).time)


def test_the_baseline_is_detectron2s_model() -> None:
    stock = detectron2_get_cfg()
    folder = Path(detectron2.__file__).parent / "model_zoo" / "configs"
    stock.merge_from_file(str(folder / "COCO-Detection" / "faster_rcnn_R_50_FPN_1x.yaml"))
    ours = baseline_cfg()
    for key in ("WEIGHTS", "DEVICE"):
        stock.MODEL[key] = ours.MODEL[key]
    with NoDraws():
        models = [META_ARCH_REGISTRY.get(c.MODEL.META_ARCHITECTURE)(c) for c in (stock, ours)]
    assert str(models[0]) == str(models[1])
    assert stock.MODEL.RPN.POST_NMS_TOPK_TEST == ours.MODEL.RPN.POST_NMS_TOPK_TEST == 1000


def test_tool_measures_some_and_keeps_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "model_zoo.md"
    copy.write_text(re.sub(r"\| 128 x 128 \| 100 \| [\d.]+", "| 128 x 128 | 100 | 9", page()))
    main = runpy.run_path(str(TOOL))["main"]
    main(["--only", "Demo/faster_rcnn.yaml", "--no-latency", "--output", str(copy)])
    measured = read_measured(copy.read_text(), configs_at=CONFIGS_AT)
    original = read_measured(page(), configs_at=CONFIGS_AT)
    assert measured["Demo/faster_rcnn.yaml"].gflops == original["Demo/faster_rcnn.yaml"].gflops
    assert measured["Demo/csp_cascade.yaml"].gflops == "9"
    assert "Demo/faster_rcnn.yaml: Measured" in capsys.readouterr().out


def test_tool_refuses_an_unknown_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOL))["main"](["--only", "no-such.yaml"])
    assert "no-such.yaml" in capsys.readouterr().err
