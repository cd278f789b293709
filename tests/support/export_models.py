"""Small detectors whose detections are neither few nor alike, and images for them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import Tensor, nn

from d2_plugins import model_zoo
from tests.support.helpers import randomise_norms

# The two that every format is tried with; names of configs and options.
PLAIN = "Demo/faster_rcnn.yaml"
FLAGSHIP = "Demo/csp_cascade.yaml"
MASK = ("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8)
# Between the scores of the fc head: some RoIs go through the conv head, and not as many as in
# another image.
SELECTIVE = ("MODEL.DOUBLE_HEAD.CONV_HEAD_MIN_SCORE", 0.2)
SMALL = (
    *("MODEL.CSPNET.WIDTH_MULTIPLIER", 0.125, "MODEL.CSPNET.DEPTH_MULTIPLIER", 0.2),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
    *("MODEL.DOUBLE_HEAD.FC_DIM", 32, "MODEL.DOUBLE_HEAD.CONV_DIM", 32),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 100, "MODEL.RPN.POST_NMS_TOPK_TEST", 50),
    # Few levels: the time of an export depends on the number of nodes, not on their size.
    *("MODEL.CSPNET.OUT_FEATURES", ("res4", "res5"), "MODEL.FPN.IN_FEATURES", ("res4", "res5")),
    *("MODEL.RPN.IN_FEATURES", ("p4", "p5"), "MODEL.ROI_HEADS.IN_FEATURES", ("p4", "p5")),
    *(
        "MODEL.ANCHOR_GENERATOR.SIZES",
        ((48,), (96,)),
        "MODEL.ATTENTION.STAGES",
        [False, False, True, False],
    ),
    # As in the configs for photographs: the number of samples follows the box.
    *("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0, "MODEL.ROI_HEADS.NUM_CLASSES", 5),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05, "TEST.DETECTIONS_PER_IMAGE", 60),
)
# Freshly initialised, these predict next to nothing.
_PREDICTORS = ("bbox_pred", "cls_score", "objectness", "deltas", "predictor", "conv_head")


def small_model(config: str, opts: Sequence[object] = ()) -> nn.Module:
    """A detector of the zoo, shrunken, with weights as a trained one might have them."""
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list([*SMALL, *opts])
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = randomise_norms(build_model(cfg)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and any(part in name for part in _PREDICTORS):
            nn.init.normal_(parameter, std=0.1)
    return model


def image(height: int, width: int, seed: int = 0) -> Tensor:
    """(3, height, width), coloured blobs in 0..255."""
    blobs = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(blobs, (height, width), mode="bicubic")[0].clamp(0, 1) * 255
