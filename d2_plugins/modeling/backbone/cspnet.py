"""CSPNet (Wang et al. 2020, arXiv 1911.11929) as a detectron2 backbone.

The parameters correspond one to one to timm's (:mod:`d2_plugins.checkpoint.cspnet_weights` renames
them), and with timm's weights the features equal timm's.
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

    Features are named "stem" and, after their stride, "res{log2(stride)}": "res2".."res5" at
    strides 4..32, and "res1" at stride 2 in the DarkNet-like architectures. The output of the
    optional classifier is named "linear".
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
            in_channels: number of channels of the images.
            norm: FrozenBN, BN, SyncBN or GN, or a function from channels to a norm module.
            width_multiplier: factor of all numbers of channels, see
                :func:`~d2_plugins.modeling.backbone.cspnet_archs.scale_arch`.
            depth_multiplier: factor of the number of blocks of each stage.
            leaky_slope: negative slope of the leaky ReLU, in architectures that have one: 0.01 for
                timm's weights, 0.1 for darknet's.
            num_classes: number of outputs of a classifier; None for no classifier.
            out_features: features to return; None for the last one (the classifier's output if
                there is a classifier). Stages after the last returned feature are not built.
            freeze_at: see :meth:`freeze`.
            gradient_checkpointing: in training, recompute each stage in the backward pass instead
                of storing its activations.
            attention: settings of the attention; None for no attention.

        Raises:
            ValueError: an option is not allowed; the message names its config key.
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
        """Read ``MODEL.CSPNET``, ``MODEL.ATTENTION`` and ``MODEL.BACKBONE.FREEZE_AT``."""
        node = cfg.MODEL.CSPNET
        # A less deep network takes the first blocks of each stage from published weights.
        if node.NORM == "FrozenBN" and (node.WIDTH_MULTIPLIER != 1 or node.DEPTH_MULTIPLIER > 1):
            logger.warning(
                "MODEL.CSPNET.NORM is FrozenBN, and WIDTH_MULTIPLIER is not 1 or DEPTH_MULTIPLIER "
                "above 1: no published weights fit. Unless MODEL.WEIGHTS are your own, train with "
                "BN or GN."
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
        """Divisor of image sizes that give features of exactly H / stride by W / stride."""
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the features.

        Args:
            x: images (N, C, H, W), normalised; images of different sizes are zero-padded at the
                bottom and on the right.

        Returns:
            Features (N, C', H / stride, W / stride), sizes rounded up, by name; "linear" is
            (N, classes).
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
            freeze_at: 0 freezes nothing, 1 everything before "res2" (the stem, and "res1" if there
                is one), 2 also "res2", and so on to 5.

        Returns:
            The network itself.

        Raises:
            ValueError: ``freeze_at`` is not in 0..5.
        """
        if freeze_at not in range(6):
            raise ValueError(f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; allowed: 0 to 5")
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
        """Add the stages up to the last returned feature, or all of them for a classifier."""
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
        raise ValueError(f"MODEL.CSPNET.LEAKY_SLOPE is {leaky_slope}; allowed: 0 or more")
    if table.activation == "silu":
        return partial(nn.SiLU, inplace=True)
    return partial(nn.LeakyReLU, leaky_slope, inplace=True)


def _positions(table: CSPArch) -> list[str]:
    """Return the attention positions of a network; plain stages have no second path."""
    plain = any(stage.kind == "plain" for stage in table.stages)
    return [p for p in POSITIONS if not (plain and p in ("branch", "concat", "cross"))]


def _checked_features(
    out_features: Sequence[str] | None, stage_names: Sequence[str], num_classes: int | None
) -> list[str]:
    allowed = ["stem", *stage_names, *([] if num_classes is None else ["linear"])]
    if out_features is None:
        return allowed[-1:]
    if not out_features or not set(out_features) <= set(allowed):
        raise ValueError(
            f"MODEL.CSPNET.OUT_FEATURES is {list(out_features)}; allowed: one or more of "
            f"{', '.join(allowed)}"
        )
    return list(out_features)


@BACKBONE_REGISTRY.register()
def build_cspnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> CSPNet:
    """Build a CSPNet from ``MODEL.CSPNET`` and ``MODEL.ATTENTION``."""
    return CSPNet(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_cspnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a CSPNet with the FPN of ``MODEL.FPN``; P6 is pooled from P5."""
    return build_fpn(cfg, CSPNet(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_retinanet_cspnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a CSPNet with RetinaNet's pyramid: FPN, with P6 and P7 from the last feature."""
    return build_fpn(cfg, CSPNet(cfg, input_shape), retinanet=True)
