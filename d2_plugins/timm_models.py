"""Our CSPNets and attention ResNets as timm models, to pretrain them with timm's training script.

Importing this module registers them in timm: ``d2_<arch>`` and ``d2_<arch>_<attention>``, such as
``d2_cspresnext50_eca`` and ``d2_resnet50_cbam``. They take timm's ``num_classes``, ``in_chans``,
``global_pool``, ``drop_rate`` and ``features_only``, and CSPNets our ``width_multiplier`` and
``depth_multiplier``. A checkpoint that timm saves of them can be a detector's ``MODEL.WEIGHTS``.

As a command it registers the models and then runs a script, here timm's:

    python -m d2_plugins.timm_models train.py /data/imagenet --model d2_cspresnext50_eca
"""

import runpy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.modeling import Backbone
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from .modeling.backbone import AttentionPlan, AttentionResNet, CSPNet
from .modeling.backbone.cspnet_archs import ARCHS
from .modeling.backbone.gradient_checkpointing import run_checkpointed

__all__ = ["TimmClassifier"]

_GATES = ("eca", "cbam", "se")
_RESNET_DEPTHS = (18, 34, 50, 101, 152)


class TimmClassifier(nn.Module):
    """A backbone of this package with timm's classifier and the methods of a timm model.

    All entries of the state dict have the backbone's names, except those of ``head``.
    """

    def __init__(
        self,
        body: Backbone,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        """Take over the stem and the stages of a backbone.

        Args:
            body: a CSPNet or an AttentionResNet with all stages.
            num_classes: number of outputs of the classifier; 0 for no classifier.
            in_chans: number of channels of the images, those of ``body``.
            global_pool: timm's name of the pooling before the classifier; "" for none.
            drop_rate: dropout before the classifier.
        """
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.grad_checkpointing = False
        self._parts = ("stem", *body.stage_names)
        for name in self._parts:
            self.add_module(name, getattr(body, name))
        strides, channels = body._out_feature_strides, body._out_feature_channels
        # timm's features have one entry per stride.
        first = 1 if strides["stem"] == strides[self._parts[1]] else 0
        self.feature_info = [
            {"num_chs": channels[name], "reduction": strides[name], "module": name}
            for name in self._parts[first:]
        ]
        self.num_features = self.head_hidden_size = channels[self._parts[-1]]
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        if num_classes > 0:
            nn.init.normal_(self.head.fc.weight, std=0.01)
            nn.init.zeros_(self.head.fc.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / stride, W / stride)."""
        for name in self._parts:
            part = getattr(self, name)
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = run_checkpointed(part, x)
            else:
                x = part(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, H, W) -> (N, num_classes), or (N, num_features) with pre_logits."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; 0 classes remove it."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute stem and stages in the backward pass instead of storing their activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's groups of layers: the stem, and each stage, coarse or not."""
        return {"stem": r"^stem", "blocks": r"^res(\d)"}


def _plan(attention: str) -> AttentionPlan:
    # The images of a classifier's batch have no padding.
    position = "cross" if attention == "local" else "block_out"
    return AttentionPlan(name=attention, position=position, ignore_padding=False)


def _cspnet(arch: str, attention: str) -> Callable[..., nn.Module]:
    def build(
        *,
        in_chans: int = 3,
        width_multiplier: float = 1.0,
        depth_multiplier: float = 1.0,
        **options: Any,
    ) -> nn.Module:
        body = CSPNet(
            arch=arch,
            in_channels=in_chans,
            width_multiplier=width_multiplier,
            depth_multiplier=depth_multiplier,
            attention=_plan(attention),
        )
        return TimmClassifier(body, in_chans=in_chans, **options)

    return build


def _resnet(depth: int, attention: str) -> Callable[..., nn.Module]:
    def build(*, in_chans: int = 3, **options: Any) -> nn.Module:
        body = AttentionResNet(attention=_plan(attention), depth=depth, in_channels=in_chans)
        return TimmClassifier(body, in_chans=in_chans, **options)

    return build


def _builders() -> Iterator[tuple[str, Callable[..., nn.Module], int]]:
    """Yield timm's name, the builder and the number of features of every model."""
    for arch, table in ARCHS.items():
        has_shortcut = all(stage.kind != "plain" for stage in table.stages)
        features = len({table.stem.total_stride, *table.strides})
        for attention in ("", *_GATES, *(("local",) if has_shortcut else ())):
            yield f"d2_{arch}_{attention}".rstrip("_"), _cspnet(arch, attention), features
    for depth in _RESNET_DEPTHS:
        for attention in _GATES:
            yield f"d2_resnet{depth}_{attention}", _resnet(depth, attention), 4


def _entrypoint(
    name: str, build: Callable[..., nn.Module], features: int
) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        feature_cfg = {"out_indices": tuple(range(features))}
        return build_model_with_cfg(build, name, pretrained, feature_cfg=feature_cfg, **options)

    create.__name__ = name
    return create


# register_model looks here for the default configs: those of timm's ResNets.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "stem.conv1",
            "classifier": "head.fc",
        }
        for name, _, _ in _builders()
    }
)
for _name, _build, _features in _builders():
    globals()[_name] = register_model(_entrypoint(_name, _build, _features))


def main() -> None:
    """Run the script that the first argument names, with the other arguments."""
    if len(sys.argv) < 2:
        raise SystemExit(f"usage: python -m {__spec__.name} SCRIPT [ARGUMENT ...]")
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
