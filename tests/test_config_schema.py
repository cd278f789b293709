"""The table of allowed values: bad values of every key are refused, all shipped configs pass."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import detectron2.model_zoo
import pytest
from detectron2.config import CfgNode

from d2_plugins import get_cfg, model_zoo
from d2_plugins.checkpoint.checkpointer import load_model
from d2_plugins.config_schema import RULES, check_config
from d2_plugins.engine import Trainer
from d2_plugins.errors import UsageError
from d2_plugins.model_zoo import read_config

MAY_BE_NONE = {"SOLVER.WEIGHT_DECAY_BIAS", "MODEL.DOUBLE_HEAD.CONV_HEAD_MIN_SCORE"}
# A number below zero has a meaning in these; -7 in none but the first two.
MAY_BE_MINUS_7 = {"MODEL.PIXEL_MEAN", "MODEL.TIMM.OUT_INDICES"}
NAME_IS_FREE = {"MODEL.WEIGHTS", "OUTPUT_DIR"}


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def replace_numbers(value: Any, number: Any) -> Any:
    """Return a copy of nested sequences with every number or name replaced."""
    if isinstance(value, list | tuple):
        return type(value)(replace_numbers(item, number) for item in value)
    return number


DEFAULTS = dict(leaves(get_cfg()))


def bad_values(key: str) -> Iterator[Any]:
    default = DEFAULTS[key]
    if key not in MAY_BE_NONE:
        yield None
    yield {}
    yield object()
    for number in (math.nan, math.inf, -math.inf, 10**30, -(10**30)):
        yield replace_numbers(default, number) if default else number
    if key not in MAY_BE_MINUS_7:
        yield replace_numbers(default, -7) if default else -7
    if isinstance(default, str):
        yield 3
        yield ["a"]
        if key not in NAME_IS_FREE:
            yield "no_such_name"
    elif isinstance(default, list | tuple):
        yield "text"
        yield [object()]
        yield [[[[1]]]]
    else:
        yield "text"
        yield [1]
        yield True


@pytest.mark.parametrize("key", RULES)
def test_bad_values_of_every_key_are_refused_by_its_name(key: str) -> None:
    node, _, leaf = key.rpartition(".")
    for value in bad_values(key):
        cfg = get_cfg()
        parent = cfg
        for name in node.split(".") if node else ():
            parent = parent[name]
        dict.__setitem__(parent, leaf, value)  # past yacs, which refuses some types
        with pytest.raises(UsageError, match=rf"^{re.escape(key)} is .*; allowed: ") as error:
            check_config(cfg)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("key", [key for key in DEFAULTS if key not in RULES])
def test_other_keys_have_the_type_of_their_default(key: str) -> None:
    node, _, leaf = key.rpartition(".")
    for value in (None, object(), math.nan):
        cfg = get_cfg()
        parent = cfg
        for name in node.split(".") if node else ():
            parent = parent[name]
        dict.__setitem__(parent, leaf, value)  # past yacs, which refuses some types
        with pytest.raises(UsageError, match=rf"^{re.escape(key)} is "):
            check_config(cfg)


def test_keys_without_a_rule_are_few() -> None:
    """A new key needs a rule, unless it is a flag or free text."""
    free = {key for key, value in DEFAULTS.items() if not isinstance(value, bool)} - set(RULES)
    assert free == {
        "MODEL.WEIGHTS",
        "MODEL.TIMM.NAME",
        "MODEL.TIMM.CHECKPOINT",
        "TEST.BEST_METRIC",
        # Of models that this package does not train, and of none.
        "MODEL.ANCHOR_GENERATOR.ANGLES",
        "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER",
        "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES",
        "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
        "GLOBAL.HACK",
    }
    assert set(RULES) <= set(DEFAULTS)


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_configs_of_the_zoo_pass(name: str) -> None:
    check_config(model_zoo.get_config(name))


def test_configs_of_detectron2_pass() -> None:
    root = Path(detectron2.model_zoo.__file__).parent / "configs"
    files = [*root.glob("COCO-*/*.yaml"), *root.glob("PascalVOC-*/*.yaml")]
    assert len(files) > 20
    for file in files:
        # The proposals of the first are downloads; the second is refused for a tag that runs code.
        if not file.name.startswith(("fast_rcnn", "retinanet")):
            read_config(str(file))


FASTER = "Demo/faster_rcnn.yaml"


@pytest.mark.parametrize(
    ("config", "opts", "said"),
    [
        (FASTER, "MODEL.BACKBONE.NAME build_cspnet_fpn", "MODEL.BACKBONE.NAME .*_fpn_backbone"),
        (FASTER, "MODEL.PROPOSAL_GENERATOR.NAME CascadRPN", "NAME is CascadRPN.*CascadeRPN"),
        (FASTER, "MODEL.META_ARCHITECTURE GeneralisedRCNN", "META_ARCH.*GeneralizedRCNN"),
        (FASTER, "MODEL.FPN.NORM BatchNorm", "MODEL.FPN.NORM is BatchNorm; allowed: '', BN"),
        (FASTER, "MODEL.ANCHOR_GENERATOR.NAME RotatedAnchorGenerator", "DefaultAnchorGenerator"),
        (FASTER, "MODEL.PROPOSAL_GENERATOR.NAME RRPN", "PROPOSAL_GENERATOR.NAME is RRPN"),
        (FASTER, "MODEL.INVERTED_ATTENTION.ENABLED True", "does not read MODEL.INVERTED_ATT"),
        (FASTER, "MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT 2.0", "does not read .*CLS_LOSS_WEIGHT"),
        (FASTER, "MODEL.LOAD_PROPOSALS True", "LOAD_PROPOSALS is True; allowed with .* False"),
        (
            "Demo/faster_rcnn_crpn.yaml",
            "MODEL.LOAD_PROPOSALS True",
            "CascadeRPN, which does not read",
        ),
        (FASTER, "MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals", "allowed with .*: True"),
        (
            FASTER,
            "MODEL.PROPOSAL_GENERATOR.NAME PrecomputedProposals MODEL.LOAD_PROPOSALS True",
            "PROPOSAL_FILES_TRAIN is .*one file for each",
        ),
        (FASTER, "DATALOADER.SAMPLER_TRAIN RandomSubsetTrainingSampler", "SAMPLER_TRAIN is Random"),
        (FASTER, "SOLVER.IMS_PER_BATCH 0", "SOLVER.IMS_PER_BATCH is 0"),
        (FASTER, "SOLVER.CHECKPOINT_PERIOD 0", "SOLVER.CHECKPOINT_PERIOD is 0"),
        (FASTER, "SOLVER.REFERENCE_WORLD_SIZE 7", "IMS_PER_BATCH .*REFERENCE_WORLD_SIZE 7"),
        (FASTER, "SOLVER.STEPS (30,20)", "SOLVER.STEPS is .*ascending"),
        (FASTER, "MODEL.RPN.IOU_LABELS [0,1]", "MODEL.RPN.IOU_LABELS .*one entry more"),
        (FASTER, "MODEL.ANCHOR_GENERATOR.SIZES [[8],[16]]", "ANCHOR_GENERATOR.SIZES is"),
        (FASTER, "INPUT.MIN_SIZE_TRAIN_SAMPLING range INPUT.MIN_SIZE_TRAIN (1,2,3)", "range"),
        (FASTER, "INPUT.CROP.ENABLED True INPUT.CROP.SIZE [9,9]", "INPUT.CROP.SIZE is"),
        (FASTER, "INPUT.FORMAT L", "MODEL.PIXEL_MEAN is .*INPUT.FORMAT L"),
        ("Demo/double_head.yaml", "MODEL.DOUBLE_HEAD.REG_ROI_SCALE 1e400", "SCALE is inf; allowed"),
        (FASTER, "MODEL None", "MODEL"),
        (FASTER, f"SOLVER.STEPS {'(' * 3000}", "SOLVER.STEPS"),
    ],
)
def test_mistakes_on_the_command_line_are_named(config: str, opts: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_config(config, opts.split())


@pytest.mark.parametrize("build", [Trainer.build_model, load_model])
@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.INVERTED_ATTENTION.ENABLED", True), ("MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT", 2.0)],
)
def test_keys_that_detectron2s_heads_ignore_are_refused_from_python(
    build: Callable[[CfgNode], object], key: str, value: object
) -> None:
    cfg = model_zoo.get_config(FASTER)
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list([key, value, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"])
    with pytest.raises(UsageError, match=rf"StandardROIHeads, which does not read {key}"):
        build(cfg)


@pytest.mark.parametrize("build", [Trainer.build_model, load_model])
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("MODEL.FPN.IN_FEATURES", ["res9"], "MODEL.FPN.IN_FEATURES is .*res9"),
        ("MODEL.RPN.IN_FEATURES", ["p9"], "cannot be built: .*p9"),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p9"], "cannot be built: .*p9"),
    ],
)
def test_features_that_the_backbone_lacks_are_named(
    build: Callable[[CfgNode], object], key: str, value: list[str], said: str
) -> None:
    cfg = model_zoo.get_config(FASTER)
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list([key, value, "MODEL.ANCHOR_GENERATOR.SIZES", [[8]]])
    with pytest.raises(UsageError, match=said):
        build(cfg)


BOMB = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{b}: &{b} {{{', '.join(f'k{i}: *{a}' for i in range(9))}}}\n"
    for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- MODEL\n", "is not a mapping"),
        ("text\n", "is not a mapping"),
        ("MODEL: null\n", "MODEL"),
        ("MODEL: [1]\n", "MODEL"),
        ("MODEL: {BACKBONE: null}\n", "MODEL.BACKBONE"),
        ("SOLVER: {STEPS: null}\n", "SOLVER.STEPS is None"),
        ("VERSION: abc\n", "VERSION is abc; allowed: 2"),
        ("VERSION: 99\n", "v99 config"),
        ("_BASE_: missing.yaml\n", r"_BASE_ of .*c\.yaml is .*missing\.yaml.*existing file"),
        ("_BASE_: c.yaml\n", r"_BASE_ of .*c\.yaml is .*c\.yaml"),
        ("_BASE_: [c.yaml]\n", r"_BASE_ of .*c\.yaml is .*c\.yaml"),
        ("_BASE_: {a: b}\n", "_BASE_ of .* allowed: local files"),
        ("_BASE_: http://127.0.0.1/c.yaml\n", "_BASE_ of .* allowed: local files"),
        (BOMB, "more than 100000 values"),
        (BOMB + "MODEL:\n  <<: *k\n", "more than 100000 values"),
        ("a: &a [*a]\n", "more than 100000 values"),
        ("MODEL: " + "[" * 5000, "cannot be read|not valid YAML"),
        ("MODEL: {\n", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("1: 2\n", "has a key 1; allowed: words"),
        ("MODEL: {MASK_ON: {2: 3}}\n", "has a key 2; allowed: words"),
        ("[a]: 2\n", "has a key that is a list or a mapping; allowed: words"),
        ("SOLVER: {BASE_LR: .nan}\n", "SOLVER.BASE_LR is nan"),
        ("MODEL: {PIXEL_STD: [1.0, 1.0, .inf]}\n", "MODEL.PIXEL_STD is .*inf"),
    ],
)
def test_odd_yaml_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_config(str(file))


def test_yaml_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("SEED: 1 # ä".encode("utf-16"))
    with pytest.raises(UsageError, match=r"c\.yaml"):
        read_config(str(tmp_path / "c.yaml"))


def test_aliases_and_bases_that_are_sound_are_read(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("SEED: 3\n")
    (tmp_path / "c.yaml").write_text(
        "_BASE_: base.yaml\nMODEL:\n  PIXEL_MEAN: &m [1.0, 2.0, 3.0]\n  PIXEL_STD: *m\n"
    )
    cfg = read_config(str(tmp_path / "c.yaml"))
    assert cfg.SEED == 3
    assert cfg.MODEL.PIXEL_STD == [1.0, 2.0, 3.0]
