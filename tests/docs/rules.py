"""Changes to documented commands before they are run, and commands that are not run.

The patterns match a command as the shell passes it on, joined by :func:`shlex.join`.
"""

import re
import shlex
from typing import NamedTuple

from tests.support.toy import TOY_LAZY_OPTS


class Change(NamedTuple):
    """``re.sub(pattern, replacement, command)`` and its reason."""

    pattern: str
    replacement: str
    reason: str


# KEY VALUE pairs that are added to the documented ones: a detector and a run of about a second.
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

_TAKES_KEYS = (
    r"(d2-plugins (train|predict|visualize-\w+|analyze|export|demo)|tools/(train_net|run_demo)\.py)"
    r"(?= |$).*"
)
_LAZY = shlex.join((*TOY_LAZY_OPTS, "train.max_iter=2"))

CHANGED: tuple[Change, ...] = (
    Change(
        r"^make demo$",
        "make --dry-run --assume-old=install PY=python demo",
        "the environment exists; the command that make prints is run, and made small",
    ),
    Change(r"--num-gpus \d+", "--num-gpus 0", "there may be no GPU"),
    Change(
        rf"^(?!.* MODEL\.WEIGHTS ){_TAKES_KEYS}",
        r"\g<0> MODEL.WEIGHTS ''",
        "the weights of a config are downloaded and fit the detector of full size",
    ),
    Change(rf"^{_TAKES_KEYS}", rf"\g<0> {shlex.join(SMALL)}", "seconds, not hours"),
    Change(
        r"^d2-plugins export.*",
        r"\g<0> INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 128 "
        r"MODEL.RPN.PRE_NMS_TOPK_TEST 1000 MODEL.RPN.POST_NMS_TOPK_TEST 1000 "
        r"MODEL.RPN.NMS_THRESH 1.0 MODEL.ROI_HEADS.NMS_THRESH_TEST 1.0 "
        r"MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 TEST.DETECTIONS_PER_IMAGE 9999",
        "exported files need images of 96 pixels and more; all boxes are kept because random "
        "weights give them nearly equal scores, and rounding would decide which remain",
    ),
    Change(r"^d2-plugins train-lazy.*", rf"\g<0> {_LAZY}", "seconds, not hours"),
    Change(
        r"^d2-plugins visualize-attention.*",
        r"\g<0> MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0",
        "random weights give low scores, and a detection is needed",
    ),
    Change(r"^d2-plugins benchmark (?!gpu-check)[\w-]+", r"\g<0> --repeats 1", "minutes"),
    Change(
        r"^d2-plugins benchmark (double-head|inverted-attention)",
        r"\g<0> --num-rois 8",
        "minutes",
    ),
    Change(r"^(?!.* --only )dev/make_zoo\.py.*", r"\g<0> --only Demo/faster_rcnn.yaml", "minutes"),
    Change(
        r"^python -m pytest.*",
        r"\g<0> --collect-only -n 0 -p no:cacheprovider",
        "the tests themselves run in this suite",
    ),
)

_WHOLE = "downloads a dataset, or needs all of its files"
_INSTALLS = "installs packages"

# Patterns of commands that are not run, and the reason. Arguments of d2-plugins are still parsed.
NOT_RUN: dict[str, str] = {
    r"make install": _INSTALLS,
    r"make test": "runs this test",
    r"make format lint": "rewrites the checkout",
    r"source \.venv/bin/activate": "the environment is that of the tests",
    r"pip install ('?\.|pre-commit|--no-deps sal-detectron2|'d2_plugins)": _INSTALLS,
    r"pip install --no-build-isolation git\+https": _INSTALLS,
    r"conda env create": _INSTALLS,
    r"conda activate": "there may be no conda",
    r"dev/install\.sh": _INSTALLS,
    r"dev/reproduce_tables\.py": "trains for hours; tests/dev/test_trained_tables.py trains less",
    r"d2-plugins prepare coco2017": _WHOLE,
    r"d2-plugins prepare voc": _WHOLE,
    r"d2-plugins train --config-file PascalVOC-Detection": _WHOLE,
    r"d2-plugins prepare (penn_fudan|bccd)": _WHOLE,
    r"d2-plugins check penn_fudan_train": _WHOLE,
    r"d2-plugins predict .*--track": "tests/visualization/test_tracking.py tracks",
    r"d2-plugins push (?!.*--output)": "uploads; tests/hub/test_push.py has a server",
    r"d2-plugins benchmark detectors": "minutes; tests/benchmark/test_detectors.py runs toy models",
    r"d2-plugins benchmark gpu-check": "needs a GPU; tests/cuda/test_gpu_check.py simulates one",
}

# Folders that a page may use, and the command that makes each of them before the page is run.
PRESUPPOSED: dict[str, str] = {"output/demo": "make demo"}

# Weights of the reader: random ones are written when they are loaded.
READERS_WEIGHTS = ("model_final.pth",)

# A page with one of these takes longer than 20 s on a busy machine.
SLOW = re.compile(r"d2-plugins export|--num-machines")


def small(command: str) -> str:
    """Return the command as it is run."""
    for change in CHANGED:
        command = re.sub(change.pattern, change.replacement, command, flags=re.S)
    return command


def why_not_run(command: str) -> str | None:
    """Return the reason, or None for a command that is run."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)
