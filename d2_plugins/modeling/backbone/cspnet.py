"""CSPNet (Wang et al. 2020, arXiv 1911.11929) as a detectron2 backbone.

Names and shapes of the parameters are timm's under a fixed renaming
(:mod:`d2_plugins.checkpoint.cspnet_weights`), and with timm's weights the features are timm's.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from torch import Tensor, nn

from ...layers.padding import subsample_mask, valid_extent, valid_mask
from .attention_plan import POSITIONS, AttentionPlan, StageAttention
from .cspnet_archs import CSPArch, StageSpec, get_arch, scale_arch
from .cspnet_blocks import ConvFactory, Stem
from .cspnet_stages import build_stage
from .fpn import build_fpn
from .gradient_checkpointing import run_checkpointed

__all__ = [
    "CSPNet",
    "build_cspnet_backbone",
    "build_cspnet_fpn_backbone",
    "build_retinanet_cspnet_fpn_backbone",
]

logger = logging.getLogger(__name__)


class CSPNet(Backbone):
    """A cross stage partial network.

    Features are named after their stride: "stem", then "res{log2(stride)}", so "res2".."res5" at
    strides 4..32; the DarkNet-like ones have a "res1" at stride 2 as well. A classifier, if asked
    for, is "linear".
    """

    @configurable
    def __init__(
        self,
        *,
        arch: str | CSPArch = "cspresnext50",
        in_channels: int = 3,
        norm: str | Callable[[int], nn.Module] = "BN",
        width_multiplier: float = 1.0,
        depth_multiplier: float = 1.0,
        leaky_slope: float = 0.01,
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
        gradient_checkpointing: bool = False,
        attention: AttentionPlan | None = None,
    ) -> None:
        """Build the network.

        Args:
            arch: name in :data:`~d2_plugins.modeling.backbone.cspnet_archs.ARCHS`, or a table of
                your own.
            in_channels: of the images.
            norm: FrozenBN, BN, SyncBN or GN, or a function from channels to a norm module.
            width_multiplier: of every width, see
                :func:`~d2_plugins.modeling.backbone.cspnet_archs.scale_arch`.
            depth_multiplier: of every stage's number of blocks.
            leaky_slope: negative slope of the leaky ReLU, where the architecture has one: 0.01 for
                timm's weights, 0.1 for darknet's.
            num_classes: add a classifier with as many outputs.
            out_features: features to return; None returns the last one (the classifier's output if
                there is one). Stages behind the last of them are not built.
            freeze_at: see :meth:`freeze`.
            gradient_checkpointing: in training, recompute each stage in the backward pass instead
                of storing its activations.
            attention: which attention modules to add, and where; None adds none.

        Raises:
            ValueError: an unknown name, or a value that is not allowed.
        """
        super().__init__()
        table = scale_arch(
            get_arch(arch) if isinstance(arch, str) else arch, width_multiplier, depth_multiplier
        )
        conv = ConvFactory(norm, _activation(table, leaky_slope))
        self.gradient_checkpointing = gradient_checkpointing
        self.num_classes = num_classes
        names = [f"res{int(math.log2(stride))}" for stride in table.strides]
        self._out_features = _checked_features(out_features, names, num_classes)

        self.stem = Stem(in_channels, table.stem, conv=conv)
        self._out_feature_strides = {"stem": self.stem.stride}
        self._out_feature_channels = {"stem": self.stem.out_channels}
        self.stage_names: list[str] = []
        plan = attention or AttentionPlan()
        placed = plan.for_stages(names, _positions(table))
        self._ignore_padding = bool(placed) and plan.ignore_padding
        self._add_stages(dict(zip(names, table.stages, strict=True)), conv, placed)
        if num_classes is not None:
            self._add_classifier(num_classes)
        self.freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Arguments of the constructor from ``MODEL.CSPNET``, ``MODEL.ATTENTION``, FREEZE_AT."""
        node = cfg.MODEL.CSPNET
        if node.NORM == "FrozenBN" and (node.WIDTH_MULTIPLIER, node.DEPTH_MULTIPLIER) != (1, 1):
            logger.warning(
                "MODEL.CSPNET.NORM is FrozenBN and WIDTH_MULTIPLIER or DEPTH_MULTIPLIER is not 1: "
                "no published weights fit. Unless MODEL.WEIGHTS are your own, train with BN or GN."
            )
        return {
            "arch": node.ARCH,
            "in_channels": input_shape.channels,
            "norm": node.NORM,
            "width_multiplier": node.WIDTH_MULTIPLIER,
            "depth_multiplier": node.DEPTH_MULTIPLIER,
            "leaky_slope": node.LEAKY_SLOPE,
            "out_features": node.OUT_FEATURES,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "gradient_checkpointing": node.GRADIENT_CHECKPOINTING,
            "attention": AttentionPlan.from_config(cfg),
        }

    @property
    def size_divisibility(self) -> int:
        """Images of such a multiple give features of exactly H / stride by W / stride."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features of the images.

        Args:
            x: (N, C, H, W), normalised; a batch of different sizes is zero-padded at the bottom and
                on the right.

        Returns:
            Name to feature, (N, C', H / stride, W / stride) rounded up; "linear" is (N, classes).
        """
        valid = valid_mask(valid_extent(x), 1, x) if self._ignore_padding else None
        outputs = {}
        for name in ("stem", *self.stage_names):
            module = getattr(self, name)
            x = outputs[name] = self._run(module, x, valid)
            valid = subsample_mask(valid, module.stride)
        if self.num_classes is not None:
            outputs["linear"] = self.linear(x.mean(dim=(2, 3)))
        return {name: outputs[name] for name in self._out_features}

    def freeze(self, freeze_at: int = 0) -> "CSPNet":
        """Freeze the first layers: no gradient, and BatchNorm becomes FrozenBatchNorm2d.

        Attention modules stay trainable.

        Args:
            freeze_at: 0 freezes nothing, 1 everything before "res2" (the stem and, where there is
                one, "res1"), 2 also "res2", and so on to 5.

        Returns:
            The network itself.

        Raises:
            ValueError: ``freeze_at`` is not in 0..5.
        """
        if freeze_at not in range(6):
            raise ValueError(f"MODEL.BACKBONE.FREEZE_AT = {freeze_at} must be in 0..5.")
        if freeze_at >= 1:
            self.stem.freeze()
        for name in self.stage_names:
            if freeze_at >= int(name.removeprefix("res")):
                getattr(self, name).freeze()
        return self

    def _run(self, module: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return run_checkpointed(module, x, valid)
        return module(x, valid)

    def _add_stages(
        self,
        specs: Mapping[str, StageSpec],
        conv: ConvFactory,
        attention: Mapping[str, StageAttention],
    ) -> None:
        """Add the stages up to the last one that is needed; all of them for a classifier."""
        names = list(specs)
        if self.num_classes is None:
            names = names[
                : max(names.index(f) + 1 if f in names else 0 for f in self._out_features)
            ]
        channels, self._size_divisibility = self.stem.out_channels, self.stem.stride
        for name in names:
            stage = build_stage(channels, specs[name], conv=conv, attention=attention.get(name))
            self.add_module(name, stage)
            self.stage_names.append(name)
            channels = stage.out_channels
            self._size_divisibility *= stage.stride
            self._out_feature_strides[name] = self._size_divisibility
            self._out_feature_channels[name] = channels

    def _add_classifier(self, num_classes: int) -> None:
        self.linear = nn.Linear(self._out_feature_channels[self.stage_names[-1]], num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self._out_feature_strides["linear"] = None
        self._out_feature_channels["linear"] = num_classes


def _activation(table: CSPArch, leaky_slope: float) -> Callable[[], nn.Module]:
    if leaky_slope < 0:
        raise ValueError(f"MODEL.CSPNET.LEAKY_SLOPE = {leaky_slope} must not be negative.")
    if table.activation == "silu":
        return partial(nn.SiLU, inplace=True)
    return partial(nn.LeakyReLU, leaky_slope, inplace=True)


def _positions(table: CSPArch) -> list[str]:
    """The attention positions of a network: plain stages have no second path."""
    plain = any(stage.kind == "plain" for stage in table.stages)
    return [p for p in POSITIONS if not (plain and p in ("branch", "concat"))]


def _checked_features(
    out_features: Sequence[str] | None, stage_names: Sequence[str], num_classes: int | None
) -> list[str]:
    allowed = ["stem", *stage_names, *([] if num_classes is None else ["linear"])]
    if out_features is None:
        return allowed[-1:]
    if not out_features or not set(out_features) <= set(allowed):
        raise ValueError(
            f"MODEL.CSPNET.OUT_FEATURES = {list(out_features)} must be some of: "
            f"{', '.join(allowed)}."
        )
    return list(out_features)


@BACKBONE_REGISTRY.register()
def build_cspnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> CSPNet:
    """CSPNet as ``MODEL.CSPNET`` and ``MODEL.ATTENTION`` say."""
    return CSPNet(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_cspnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """CSPNet with an FPN, as ``MODEL.FPN`` says; P6 is pooled from P5."""
    return build_fpn(cfg, CSPNet(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_retinanet_cspnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """CSPNet with RetinaNet's pyramid: an FPN, and P6 and P7 convolved from the last feature."""
    return build_fpn(cfg, CSPNet(cfg, input_shape), retinanet=True)
