"""Every config of the zoo: merges, survives dump and reload, and names parts that exist."""

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    build_model,
)

import d2_plugins.data
from d2_plugins import add_d2_plugins_config, get_cfg, model_zoo


def test_adding_the_keys_twice_keeps_the_values() -> None:
    cfg = get_cfg()
    cfg.MODEL.CSPNET.ARCH = "cspdarknet53"
    before = cfg.dump()
    add_d2_plugins_config(cfg)
    assert cfg.dump() == before


def test_detectron2s_keys_keep_their_values() -> None:
    stock, ours = detectron2_get_cfg(), get_cfg()

    def check(a: dict[str, object], b: dict[str, object]) -> None:
        for key, value in a.items():
            if isinstance(value, dict):
                check(value, b[key])  # type: ignore[arg-type]
            else:
                assert b[key] == value, key

    check(stock, ours)


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_config_merges_dumps_reloads_and_names_known_parts(name: str, tmp_path: Path) -> None:
    assert d2_plugins.data  # registers the data sets
    cfg = model_zoo.get_config(name)
    (tmp_path / "dump.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "dump.yaml"), allow_unsafe=False)
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.MODEL.BACKBONE.NAME in BACKBONE_REGISTRY
    assert cfg.MODEL.ROI_HEADS.NAME in ROI_HEADS_REGISTRY
    generator = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    assert generator in PROPOSAL_GENERATOR_REGISTRY or generator == "PrecomputedProposals"
    assert set(cfg.DATASETS.TRAIN + cfg.DATASETS.TEST) <= set(DatasetCatalog.list())


def test_unknown_config_names_the_nearest() -> None:
    with pytest.raises(FileNotFoundError, match=r"csp_cascade\.yaml"):
        model_zoo.get_config("csp_cascad.yaml")


def test_trained_weights_are_never_invented() -> None:
    with pytest.raises(RuntimeError, match="No trained weights"):
        model_zoo.get_config("csp_cascade.yaml", trained=True)


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_config_builds(name: str) -> None:
    cfg = model_zoo.get_config(name)
    # Without values and at once, but for Cascade RPN, which checks those of the anchors.
    device = "cpu" if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "CascadeRPN" else "meta"
    cfg.MODEL.DEVICE = device
    with torch.device(device):
        model = build_model(cfg)
    assert any(parameter.requires_grad for parameter in model.parameters())
