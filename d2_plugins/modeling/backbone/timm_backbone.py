"""Any timm model as a detectron2 backbone.

Channels and strides come from timm's ``feature_info`` and not from the position of a feature: index
0 is often a stem, and some models begin at stride 1 or 4. Features are named after their stride,
"res2".."res5" at 4..32 ("res1" at 2), so that detectron2's configs work unchanged.

Many timm models fuse norm and activation (``BatchNormAct2d``). The norm converters of detectron2
and torch would silently delete these activations. timm's converters keep them, so only these are
used here.

Shapes: N images, C channels, Hi, Wi of the images, H, W of a feature map.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from torch import Tensor, nn

from .fpn import build_fpn
from .pixel_statistics import PixelStatistics
from .timm_features import count_frozen, create_features, feature_names, name_in_whole_model

__all__ = [
    "TimmBackbone",
    "build_retinanet_timm_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
]

logger = logging.getLogger(__name__)

_NORMS = ("FrozenBN", "BN", "SyncBN")


class TimmBackbone(Backbone):
    """A timm model with ``features_only``."""

    @configurable
    def __init__(
        self,
        *,
        name: str,
        pretrained: bool = False,
        checkpoint: str = "",
        out_indices: Sequence[int] = (),
        in_channels: int = 3,
        norm: str = "BN",
        freeze_at: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Build the model, load its weights, then convert its norms and freeze.

        Args:
            name: name of a timm model that has features, with or without the tag of its weights.
            pretrained: load timm's weights, from the cache or by download.
            checkpoint: local file of timm's weights (``.pth``, ``.safetensors``) to load instead.
            out_indices: timm's feature indices; empty for those at strides 4, 8, 16 and 32.
            in_channels: number of channels of the images.
            norm: "BN" leaves the model's norms as they are; "FrozenBN" and "SyncBN" convert its
                BatchNorms. Other norms (LayerNorm, ...) are never converted.
            freeze_at: 0 freezes nothing, 1 the layers before stride 4 (the stem), 2 those up to
                the feature at stride 4, 3 those up to the feature at stride 8, and so on.
            gradient_checkpointing: recompute activations in the backward pass.

        Raises:
            ValueError: an option is not allowed, or ``checkpoint`` does not fill the model.
            OSError: the weights cannot be downloaded.
        """
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f"MODEL.TIMM.NORM is '{norm}'; allowed: {', '.join(_NORMS)}")
        self.features: Any = create_features(
            name, out_indices, in_chans=in_channels, pretrained=pretrained and not checkpoint
        )
        info = self.features.feature_info
        strides = info.reduction()
        self._out_features = feature_names(name, strides)
        self._out_feature_strides = dict(zip(self._out_features, strides, strict=True))
        self._out_feature_channels = dict(zip(self._out_features, info.channels(), strict=True))
        self._channels_last = str(getattr(self.features, "output_fmt", "")).endswith("NHWC")
        if checkpoint:
            self._load(checkpoint)
        self._convert_norms(norm)
        self._freeze(freeze_at)
        if gradient_checkpointing:
            self._checkpoint_gradients(name)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read ``MODEL.TIMM`` and ``MODEL.BACKBONE.FREEZE_AT``.

        If ``MODEL.WEIGHTS`` is set, the weights come from there, and none are loaded here.
        """
        node = cfg.MODEL.TIMM
        attention = cfg.MODEL.ATTENTION
        if attention.NAME and not attention.ON_FPN:
            raise ValueError(
                f"MODEL.ATTENTION.NAME is '{attention.NAME}'; allowed in a timm backbone: '', or "
                "any name with MODEL.ATTENTION.ON_FPN True. Some timm models have built-in "
                "attention (ecaresnet50t, seresnet50, ...)"
            )
        from_here = not cfg.MODEL.WEIGHTS
        arguments = {
            "name": node.NAME,
            "pretrained": node.PRETRAINED and from_here,
            "checkpoint": node.CHECKPOINT if from_here else "",
            "out_indices": node.OUT_INDICES,
            "in_channels": input_shape.channels,
            "norm": node.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "gradient_checkpointing": node.GRADIENT_CHECKPOINTING,
        }
        _warn_about_inputs(cfg, arguments)
        return arguments

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the features.

        Args:
            x: images (N, 3, Hi, Wi), normalised.

        Returns:
            Features (N, C, H, W) by name.
        """
        features = self.features(x)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return dict(zip(self._out_features, features, strict=True))

    def convert_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the entries of a whole timm model to those of this backbone.

        For example, ``stages.0.`` in the whole model is ``stages_0.`` with ``features_only``.

        Args:
            state: state dict of the whole model. Entries that the backbone does not have, such as
                the classifier's, keep their names.
        """
        renamed = {
            source: ours
            for ours in self.state_dict()
            if (source := name_in_whole_model(ours.removeprefix("features."), state)) is not None
        }
        return {renamed.get(name, name): value for name, value in state.items()}

    def _load(self, checkpoint: str) -> None:
        import timm

        try:
            state = timm.models.load_state_dict(checkpoint, weights_only=True)
        except Exception as error:  # damaged files raise almost anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"MODEL.TIMM.CHECKPOINT is '{checkpoint}', which is missing, damaged or not a file "
                f"of weights alone: {reason}"
            ) from error
        state = self.convert_names(state)
        ours = self.state_dict()
        wrong = [
            name
            for name, value in ours.items()
            if not name.endswith("num_batches_tracked")
            and (name not in state or state[name].shape != value.shape)
        ]
        if wrong:
            raise ValueError(
                f"MODEL.TIMM.CHECKPOINT is '{checkpoint}', which is of another model: "
                f"{len(wrong)} of the {len(ours)} entries are missing or have another shape, such "
                f"as {wrong[0]}"
            )
        self.load_state_dict({k: v for k, v in state.items() if k in ours}, strict=False)
        unused = sorted(set(state) - set(ours))
        logger.info(
            "Weights from %s: all %d entries of the backbone filled; not used: %s",
            checkpoint,
            len(ours),
            ", ".join(unused[:8]) + (", ..." if len(unused) > 8 else "") or "none",
        )

    def _convert_norms(self, norm: str) -> None:
        from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

        if norm == "FrozenBN":
            self.features = freeze_batch_norm_2d(self.features)
        elif norm == "SyncBN":
            self.features = convert_sync_batchnorm(self.features)

    def _freeze(self, freeze_at: int) -> None:
        """Freeze parameters and BatchNorms of all modules up to a feature, in order of definition.

        In timm's ``features_only`` models this is also the order of execution.
        """
        from timm.layers import freeze_batch_norm_2d

        modules = dict(self.features.named_modules())
        names = list(modules)[: count_frozen(self.features, list(modules), freeze_at)]
        for name in names:
            for parameter in modules[name].parameters(recurse=False):
                parameter.requires_grad = False
            if isinstance(modules[name], nn.BatchNorm2d | nn.SyncBatchNorm):
                parent, _, child = name.rpartition(".")
                setattr(modules[parent], child, freeze_batch_norm_2d(modules[name]))

    def _checkpoint_gradients(self, name: str) -> None:
        try:
            self.features.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise ValueError(
                f"MODEL.TIMM.GRADIENT_CHECKPOINTING is True; allowed for '{name}': False"
            ) from error


def _warn_about_inputs(cfg: CfgNode, arguments: Mapping[str, Any]) -> None:
    """Warn about frozen random weights, and about pixels that timm's weights do not expect."""
    import timm

    from_timm = arguments["pretrained"] or arguments["checkpoint"]
    if not from_timm and not cfg.MODEL.WEIGHTS:
        if arguments["norm"] == "FrozenBN" or arguments["freeze_at"] > 0:
            logger.warning(
                "The timm backbone starts from random weights with frozen parts: set "
                "MODEL.TIMM.PRETRAINED, MODEL.TIMM.CHECKPOINT or MODEL.WEIGHTS, or else "
                "MODEL.TIMM.NORM BN and MODEL.BACKBONE.FREEZE_AT 0"
            )
        return
    pretrained_cfg = timm.models.get_pretrained_cfg(arguments["name"]) if from_timm else None
    if pretrained_cfg is not None:
        pixels = PixelStatistics(mean=pretrained_cfg.mean, std=pretrained_cfg.std)
        problem = pixels.mismatch(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT)
        if problem:
            logger.warning("MODEL.TIMM.NAME %s: %s", arguments["name"], problem)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the timm model of ``MODEL.TIMM``."""
    return TimmBackbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a timm model with the FPN of ``MODEL.FPN``; P6 is pooled from P5."""
    return build_fpn(cfg, TimmBackbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a timm model with RetinaNet's pyramid: FPN, with P6 and P7 from the last feature."""
    return build_fpn(cfg, TimmBackbone(cfg, input_shape), retinanet=True)
