"""Any timm model as a detectron2 backbone.

Channels and strides come from timm's ``feature_info``, never from positions: index 0 is often a
stem, and some models begin at stride 1 or 4. Features are named after their stride, "res2".."res5"
at 4..32 ("res1" at 2), so detectron2's configs work unchanged.

timm fuses norm and activation in many models (``BatchNormAct2d``). detectron2's and torch's norm
converters would delete those activations without a word; timm's own ones keep them, and only these
are used here.

Shapes: N images, C channels, Hi, Wi of the images, H, W of a feature map.
"""

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone
from torch import Tensor, nn

from d2_plugins.modeling.pixel_statistics import PixelStatistics

from .build import build_fpn

__all__ = [
    "TimmBackbone",
    "build_retinanet_timm_fpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
]

logger = logging.getLogger(__name__)

_DEFAULT_STRIDES = (4, 8, 16, 32)
_NORMS = ("FrozenBN", "BN", "SyncBN")


class TimmBackbone(Backbone):
    """Features of a timm model."""

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
            name: of a timm model that has features, with or without the tag of its weights.
            pretrained: download timm's weights (or take them from the cache).
            checkpoint: a local file of timm's weights (``.pth``, ``.safetensors``), instead.
            out_indices: timm's feature indices; empty takes those at strides 4, 8, 16 and 32.
            in_channels: of the images.
            norm: "BN" leaves the model's norms as they are; "FrozenBN" and "SyncBN" convert its
                BatchNorms. Other norms (LayerNorm, ...) always stay.
            freeze_at: 1 freezes what comes before stride 4 (the stem), 2 what leads to the feature
                at stride 4, 3 to that at stride 8, and so on.
            gradient_checkpointing: recompute activations in the backward pass.

        Raises:
            ValueError: an option is impossible, or ``checkpoint`` does not fill the model.
            OSError: the weights cannot be downloaded.
        """
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f"MODEL.TIMM.NORM is '{norm}'; allowed: {', '.join(_NORMS)}")
        self.features: Any = _create(
            name, out_indices, in_channels=in_channels, pretrained=pretrained and not checkpoint
        )
        info = self.features.feature_info
        strides = info.reduction()
        self._out_features = [f"res{int(math.log2(stride))}" for stride in strides]
        if len(set(self._out_features)) != len(strides):
            raise ValueError(
                f"MODEL.TIMM.OUT_INDICES {list(out_indices)} of '{name}' are at strides {strides}; "
                "each stride may occur once"
            )
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
        """Arguments from ``MODEL.TIMM`` and ``MODEL.BACKBONE.FREEZE_AT``.

        Where ``MODEL.WEIGHTS`` is set, the weights come from there, and none are loaded here.
        """
        node = cfg.MODEL.TIMM
        attention = cfg.MODEL.ATTENTION
        if attention.NAME and not attention.ON_FPN:
            raise ValueError(
                f"MODEL.ATTENTION.NAME is '{attention.NAME}', which a timm model has no place for: "
                "allowed are '' or MODEL.ATTENTION.ON_FPN True. Some timm models have attention of "
                "their own (ecaresnet50t, seresnet50, ...)"
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
        """Features (N, C, H, W) by name.

        Args:
            x: (N, 3, Hi, Wi), normalised.
        """
        features = self.features(x)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return dict(zip(self._out_features, features, strict=True))

    def convert_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the entries of a whole timm model to those of this backbone.

        ``features_only`` models have ``stages_0.`` where the whole one has ``stages.0.``.

        Args:
            state: state dict of the model of the same name. Entries with no place here, such as
                the classifier's, keep their names.
        """
        renamed = {
            source: ours
            for ours in self.state_dict()
            if (source := _timm_name(ours.removeprefix("features."), state)) is not None
        }
        return {renamed.get(name, name): value for name, value in state.items()}

    def _load(self, checkpoint: str) -> None:
        import timm

        state = self.convert_names(timm.models.load_state_dict(checkpoint, weights_only=True))
        ours = self.state_dict()
        wrong = [
            name
            for name, value in ours.items()
            if not name.endswith("num_batches_tracked")
            and (name not in state or state[name].shape != value.shape)
        ]
        if wrong:
            raise ValueError(
                f"MODEL.TIMM.CHECKPOINT '{checkpoint}' lacks {len(wrong)} of the {len(ours)} "
                f"entries of the model, or has them in another shape, such as {wrong[0]}: it is of "
                "another model"
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

        timm requires that order to be the order of execution.
        """
        from timm.layers import freeze_batch_norm_2d

        modules = dict(self.features.named_modules())
        names = list(modules)[: _count_frozen(self.features, list(modules), freeze_at)]
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
                f"MODEL.TIMM.GRADIENT_CHECKPOINTING is True; '{name}' allows only False"
            ) from error


def _create(name: str, out_indices: Sequence[int], **options: Any) -> Any:
    """The features of a timm model; ``options`` as ``timm.create_model``."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=5, cutoff=0.4)
        raise ValueError(
            f"MODEL.TIMM.NAME is '{name}', which timm {timm.__version__} does not have; nearest: "
            f"{', '.join(near) or 'none'}"
        )
    indices = tuple(out_indices) or _default_indices(name)
    try:
        return timm.create_model(name, features_only=True, out_indices=indices, **options)
    except (AssertionError, IndexError) as error:
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES is {list(out_indices)}; '{name}' has the indices and strides "
            f"{dict(enumerate(_strides(name)))}"
        ) from error
    except OSError as error:
        raise OSError(
            f"MODEL.TIMM.PRETRAINED: the weights of '{name}' are neither in the cache nor to be "
            f"had: {error}\nFetch the file on a machine with access and set MODEL.TIMM.CHECKPOINT "
            "to it."
        ) from error


def _strides(name: str) -> list[int]:
    """Strides of all features of a timm model, by index."""
    import timm

    with torch.device("meta"):
        info = getattr(timm.create_model(name), "feature_info", None)
    if not info:
        raise ValueError(f"MODEL.TIMM.NAME is '{name}', which has no features (features_only)")
    return [entry["reduction"] for entry in getattr(info, "info", info)]


def _default_indices(name: str) -> tuple[int, ...]:
    last = {stride: index for index, stride in enumerate(_strides(name))}
    indices = tuple(last[stride] for stride in _DEFAULT_STRIDES if stride in last)
    if not indices:
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES is empty, but '{name}' has no feature at strides 4 to 32; its "
            f"indices and strides are {dict(enumerate(_strides(name)))}"
        )
    return indices


def _timm_name(name: str, state: Mapping[str, Tensor]) -> str | None:
    """The name in a whole model of an entry of a features_only one; None if it is not there."""
    head, dot, tail = name.partition(".")
    if head in ("body", "model"):  # timm's wrappers that leave the model in one piece
        return tail if tail in state else None
    # One level of Sequential is flattened: stages.0 -> stages_0.
    parts = head.split("_")
    heads = [head] + [f"{'_'.join(parts[:i])}.{'_'.join(parts[i:])}" for i in range(1, len(parts))]
    return next((h + dot + tail for h in heads if h + dot + tail in state), None)


def _count_frozen(features: Any, names: list[str], freeze_at: int) -> int:
    """How many of the modules called ``names``, in order, come before or within the frozen part."""
    if freeze_at < 1:
        return 0
    taps = [
        (entry["reduction"], _module_index(entry["module"], names))
        for entry in features.feature_info.info
    ]
    reached = [(begin, end) for stride, (begin, end) in taps if stride <= 2**freeze_at]
    if reached:
        return reached[-1][1]
    # No feature before stride 4: the stem is all that comes before the first feature's module.
    return taps[0][1][0]


def _module_index(tap: str, names: list[str]) -> tuple[int, int]:
    """Where the module of a feature begins and ends in ``names``; (n, n) if it was cut off."""
    candidates = {tap, tap.replace(".", "_", 1), f"body.{tap}", f"model.{tap}"}
    module = next((name for name in names if name in candidates), None)
    if module is None:
        return len(names), len(names)
    begin = names.index(module)
    inside = [i for i, name in enumerate(names) if name == module or name.startswith(module + ".")]
    return begin, inside[-1] + 1


def _warn_about_inputs(cfg: CfgNode, arguments: Mapping[str, Any]) -> None:
    """Warn of frozen random norms, and of pixels that timm's weights do not expect."""
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
    """The timm model of ``MODEL.TIMM``."""
    return TimmBackbone(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A timm model with an FPN, as ``MODEL.FPN`` says; P6 is pooled from P5."""
    return build_fpn(cfg, TimmBackbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A timm model with RetinaNet's pyramid: an FPN, and P6 and P7 from the last feature."""
    return build_fpn(cfg, TimmBackbone(cfg, input_shape), retinanet=True)
