"""Small models and their random, trained-looking weights."""

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from d2_plugins import get_cfg
from d2_plugins.modeling.backbone import AttentionPlan, AttentionResNet


def resnet(depth: int = 18, attention: str = "", **plan: object) -> AttentionResNet:
    """A backbone alone, in training mode, with frozen norms."""
    return AttentionResNet(
        attention=AttentionPlan(name=attention, **plan), depth=depth, norm="FrozenBN"
    )


def detector_cfg(attention: str = "", num_classes: int = 3) -> CfgNode:
    """A narrow Faster R-CNN on an attention ResNet-18 with FPN."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.BACKBONE.NAME = "build_attention_resnet_fpn_backbone"
    cfg.MODEL.ATTENTION.NAME = attention
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    return cfg


def detector(attention: str = "", num_classes: int = 3) -> nn.Module:
    """The model of :func:`detector_cfg`, in training mode."""
    return build_model(detector_cfg(attention, num_classes))


def clones(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}
