"""The toy detector with all combinations of the components."""

from pathlib import Path

from detectron2.config import CfgNode

from d2_plugins.benchmark.gpu_check.small_detectors import (
    BACKBONES,
    COMBINATIONS,
    HEADS,
    PROPOSALS,
    SMALL,
)
from tests.support.toy import toy_cfg

__all__ = ["COMBINATIONS", "HEADS", "PROPOSALS", "combined_cfg"]


def combined_cfg(
    output: Path, backbone: str, proposals: str, heads: str, inverted: bool, mask: bool
) -> CfgNode:
    return toy_cfg(
        output,
        [
            *SMALL,
            *BACKBONES[backbone],
            *PROPOSALS[proposals],
            *HEADS[heads],
            *("MODEL.INVERTED_ATTENTION.ENABLED", inverted, "MODEL.MASK_ON", mask),
        ],
    )
