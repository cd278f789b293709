"""Outputs of mmdetection's Cascade RPN head (shared/oracles/crpn_c32.npz), and our deviations."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from detectron2.structures import Boxes, ImageList
from torch import Tensor

from d2_plugins.modeling.proposal_generator import CascadeRPN, CascadeRPNLoss
from d2_plugins.modeling.proposal_generator.cascade_rpn_loss import IoUTargets, RegionTargets
from tests.support.cascade_rpn import LEVELS, crpn, crpn_cfg, image_list, instances
from tests.support.helpers import shared_path

# Names of the layers: the reference's, ours.
_LAYERS = {"rpn_conv.conv": "conv", "rpn_reg": "bbox_deltas", "rpn_cls": "objectness"}

LOSSES = {
    "loss_rpn_stage1_loc": "loss/s0.loss_rpn_reg",
    "loss_rpn_stage2_cls": "loss/s1.loss_rpn_cls",
    "loss_rpn_stage2_loc": "loss/s1.loss_rpn_reg",
}


class Reference:
    """The stored arrays: inputs, weights, and everything in between."""

    def __init__(self) -> None:
        with np.load(shared_path("oracles/crpn_c32.npz"), allow_pickle=False) as arrays:
            self.arrays = {k: arrays[k] for k in arrays.files}

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def levels(self, key: str) -> list[Tensor]:
        """``key/0`` to ``key/4``."""
        return [self[f"{key}/{i}"] for i in range(len(LEVELS))]

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Arrays per parameter, under our names."""
        found = {}
        for key in self.arrays:
            if key.startswith(prefix + "/"):
                name = key.removeprefix(prefix + "/")
                for theirs, ours in _LAYERS.items():
                    name = name.replace(theirs, ours)
                found[name] = self[key]
        return found

    @cached_property
    def images(self) -> ImageList:
        return image_list(
            *(tuple(self[f"img_shape/{n}"].tolist()) for n in (0, 1)), padded=(256, 320)
        )

    @cached_property
    def gt_boxes(self) -> list[Boxes]:
        return [Boxes(self[f"gt/{n}"]) for n in (0, 1)]

    def features(self) -> dict[str, Tensor]:
        """Return new copies of the feature maps, which take gradients."""
        return {
            name: x.clone().requires_grad_()
            for name, x in zip(LEVELS, self.levels("feat"), strict=True)
        }

    def model(self) -> CascadeRPN:
        """Return our model with the reference's weights, config and sampled cells."""
        cfg = crpn_cfg()
        cfg.MODEL.RPN.LOSS_WEIGHT = 0.7
        model = crpn(channels=32, cfg=cfg)
        model.load_state_dict(self.named("state"))
        model.criterion = self.sampled(model.criterion)
        return model

    def sampled(self, criterion: CascadeRPNLoss) -> CascadeRPNLoss:
        """Return ``criterion`` with the reference's samples in place of its own."""
        chosen = [(self[f"s1/pos_inds/img{n}"], self[f"s1/neg_inds/img{n}"]) for n in (0, 1)]
        return _Sampled(**dataclasses.asdict(criterion), chosen=chosen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sampled(CascadeRPNLoss):
    chosen: list[tuple[Tensor, Tensor]]

    def targets(self, number: int) -> RegionTargets | IoUTargets:
        rules = super().targets(number)
        if number == 1:
            return rules
        return _SampledTargets(**dataclasses.asdict(rules), chosen=iter(self.chosen))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SampledTargets(IoUTargets):
    chosen: Iterator[tuple[Tensor, Tensor]]

    def sample(self, matches: Tensor) -> tuple[Tensor, Tensor]:
        return next(self.chosen)


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest error over the largest number, or infinity if the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


def deviations(model: CascadeRPN, reference: Reference) -> dict[str, float]:
    """Run a training pass and compare losses, gradients and proposals with the reference."""
    features = reference.features()
    gt = [
        instances(s, b.tensor)
        for s, b in zip(reference.images.image_sizes, reference.gt_boxes, strict=True)
    ]
    model.train()
    proposals, losses = model(reference.images, features, gt)
    total = sum(losses.values())
    total.backward()
    found = {"loss/total": deviation(total.detach(), reference["loss/total"])}
    for ours, theirs in LOSSES.items():
        found[ours] = deviation(losses[ours].detach(), reference[theirs].sum())
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, theirs in reference.named("grad").items():
        found[f"grad/{name}"] = deviation(gradients[name], theirs)
    for name, theirs in zip(LEVELS, reference.levels("grad_feat"), strict=True):
        found[f"grad/{name}"] = deviation(features[name].grad, theirs)
    for n, p in enumerate(proposals):
        key = f"proposals/train/img{n}"
        found[f"{key}/boxes"] = deviation(p.proposal_boxes.tensor, reference[f"{key}/boxes"])
        scores = p.objectness_logits.sigmoid()
        found[f"{key}/scores"] = deviation(scores, reference[f"{key}/scores"])
    return found
