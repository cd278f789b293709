"""What is run differently from how the documentation has it, and what is not run.

The patterns are looked for in a command as the shell passes it on, with "python" for any way to
write the interpreter and without it before a tool.
"""

import re
import shlex
from typing import NamedTuple

from tests.support.toy import TOY_LAZY_OPTS


class Change(NamedTuple):
    """``re.sub(pattern, replacement, command)``, and why."""

    pattern: str
    replacement: str
    reason: str


# KEY VALUE pairs behind those of the documentation: a detector and a run that take a second.
_SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.FREEZE_AT": "0",
    "MODEL.CSPNET.WIDTH_MULTIPLIER": "0.125",
    "MODEL.CSPNET.DEPTH_MULTIPLIER": "0.2",
    "MODEL.CSPNET.NORM": "BN",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.FPN.OUT_CHANNELS": "32",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "50",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "20",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "50",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.DOUBLE_HEAD.FC_DIM": "32",
    "MODEL.DOUBLE_HEAD.CONV_DIM": "32",
    "MODEL.DOUBLE_HEAD.NUM_CONV": "1",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MAX_SIZE_TRAIN": "80",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "80",
    "DATALOADER.NUM_WORKERS": "0",
    "SOLVER.REFERENCE_WORLD_SIZE": "0",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.STEPS": "(1,)",
    "SOLVER.WARMUP_ITERS": "0",
    "TEST.EVAL_PERIOD": "0",
}
SMALL = [word for pair in _SMALL.items() for word in pair]

_TAKES_KEYS = r"tools/(train_net|run_demo|demo|visualize_\w+|analyze_model|export_model)\.py"

CHANGED: tuple[Change, ...] = (
    Change(r"^make demo$", "make --assume-old=install demo", "the environment is there"),
    Change(r"--num-gpus \d+", "--num-gpus 0", "there may be no GPU"),
    Change(
        rf"^(?!.* MODEL\.WEIGHTS ){_TAKES_KEYS}.*",
        r"\g<0> MODEL.WEIGHTS ''",
        "the weights that a config names are downloaded, and fit the detector of full size",
    ),
    Change(rf"^{_TAKES_KEYS}.*", rf"\g<0> {shlex.join(SMALL)}", "seconds, not hours"),
    Change(
        r"^tools/export_model\.py.*",
        r"\g<0> INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 128 "
        r"MODEL.RPN.PRE_NMS_TOPK_TEST 1000 MODEL.RPN.POST_NMS_TOPK_TEST 1000 "
        r"MODEL.RPN.NMS_THRESH 1.0 MODEL.ROI_HEADS.NMS_THRESH_TEST 1.0 "
        r"MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 TEST.DETECTIONS_PER_IMAGE 9999",
        "files are for images of at least 96 pixels; random weights score all boxes alike, so that "
        "rounding chooses among them",
    ),
    Change(
        r"^tools/lazyconfig_train_net\.py.*",
        rf"\g<0> {shlex.join((*TOY_LAZY_OPTS, 'train.max_iter=2'))}",
        "seconds, not hours",
    ),
    Change(
        r"^tools/visualize_attention\.py.*",
        r"\g<0> MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0",
        "there has to be a detection, whatever the random weights",
    ),
    Change(r"^tools/benchmark\.py [\w-]+", r"\g<0> --repeats 1", "minutes"),
    Change(
        r"^tools/benchmark\.py (double-head|inverted-attention)", r"\g<0> --num-rois 8", "minutes"
    ),
    Change(r"^(?!.* --only )dev/make_zoo\.py.*", r"\g<0> --only Demo/faster_rcnn.yaml", "minutes"),
    Change(
        r"^python -m pytest.*",
        r"\g<0> --collect-only -n 0",
        "the tests that it names run by themselves",
    ),
)

_WHOLE = "downloads a data set, or wants the files of the whole of it"
_INSTALLS = "installs packages"

# Commands that are not run, and why. The arguments of our tools are parsed all the same.
NOT_RUN: dict[str, str] = {
    r"make install": _INSTALLS,
    r"make test": "runs this test",
    r"make format lint": "rewrites the checkout",
    r"pip install \.": _INSTALLS,
    r"pip install --no-build-isolation git\+https": _INSTALLS,
    r"conda env create": _INSTALLS,
    r"conda activate": "there may be no conda",
    r"dev/install\.sh": _INSTALLS,
    r"dev/reproduce_tables\.py": "trains for hours; tests/dev/test_trained_tables.py trains less",
    r"tools/prepare_datasets\.py coco2017": _WHOLE,
    r"tools/prepare_datasets\.py voc": _WHOLE,
    r"tools/prepare_datasets\.py penn_fudan": _WHOLE,
    r"tools/prepare_datasets\.py check penn_fudan_train": _WHOLE,
}

# What a page may take for granted, and the command that makes it before the page is run.
PRESUPPOSED: dict[str, str] = {"output/demo": "make demo"}

# Weights of the reader's own: random ones are written where they are loaded from.
READERS_WEIGHTS = ("model_final.pth",)

# Blocks with these take longer than 20 s on a busy machine.
SLOW = re.compile(r"tools/(export_model|make_zoo)\.py|--num-machines|-m pytest")


def small(command: str) -> str:
    """``command`` as it is run."""
    for change in CHANGED:
        command = re.sub(change.pattern, change.replacement, command, flags=re.S)
    return command


def why_not_run(command: str) -> str | None:
    """The reason, or None for a command that is run."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)
