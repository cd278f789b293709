"""Inverted Attention: train on what is left when the part of a RoI that drives its class is off.

Huang, Ke, Huang, "Improving Object Detection with Inverted Attention", WACV 2020. The spatial form
and the choice of RoIs are those of the first author's code, and equal to it number by number; the
channel form and its combination with the spatial one are in the paper only.

Shape shorthand: R RoIs of the whole batch, C channels, P pooled resolution, K foreground classes.
Labels as in detectron2: [0, K) foreground, K background, -1 ignored.

Beyond the reference: any pooled resolution, batches without foreground, without background or
without RoIs, ignored labels, no gradient written or cleared anywhere, one forward less.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Inversion", "InvertedAttention", "attention_map", "eval_mode", "hardest", "strongest"]

_MODES = ("spatial", "channel", "both", "random")
_CHOICES = ("hard", "random", "all")
_TARGETS = ("both", "cls")


def attention_map(features: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """How much each channel and each place of a RoI drives the score.

    Args:
        features: (R, C, P, P).
        gradient: of the score with respect to the features, same shape.

    Returns:
        Channel weights w (R, C), the mean gradient over places, and the attention map
        M = sum over c of w_c F_c (R, P, P): no ReLU, no normalisation.
    """
    weights = gradient.mean(dim=(2, 3))
    return weights, torch.einsum("rc,rcij->rij", weights, features)


def strongest(values: Tensor, share: float) -> Tensor:
    """Mark the largest values of each row.

    They are those strictly above the value at index ``round(share * size)`` of the row in
    descending order, so that many of them or, on ties, fewer.

    Args:
        values: (R, size).
        share: in [0, 1].

    Returns:
        (R, size) bool.
    """
    size = values.shape[1]
    count = round(share * size)
    if count == size:
        return torch.ones_like(values, dtype=torch.bool)
    return values > values.topk(count + 1, dim=1).values[:, -1:]


def hardest(change: Tensor, groups: Tensor, fractions: Sequence[float]) -> Tensor:
    """Mark, in groups of RoIs, those whose true class suffers most from the mask.

    They are those whose change is strictly above the value at index ``round(fraction * n)`` of the
    n changes of their group in descending order: at most that many, and none with a change of 0.

    Args:
        change: (R,) drop of the true class's probability, not negative.
        groups: (G, R) bool, the RoIs of each group; groups do not overlap.
        fractions: G shares in [0, 1].

    Returns:
        (R,) bool.
    """
    # All on the device: the host does not know how many RoIs a group has. RoIs of other groups sort
    # last, in front of one more entry for the index after the last.
    ranked = F.pad(change.where(groups, -1.0), (0, 1), value=-1.0)
    ranked = ranked.sort(dim=1, descending=True).values
    sizes = groups.sum(dim=1).double()
    counts = torch.stack([n * share for n, share in zip(sizes, fractions, strict=True)])
    # Half to even, as Python rounds.
    thresholds = ranked.gather(1, counts.round().long()[:, None]).clamp(min=0)
    return (groups & (change > thresholds)).any(dim=0)


@contextmanager
def eval_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules into eval mode, and every sub-module back into its own mode afterwards."""
    modules = list(modules)
    flags = [(module, module.training) for root in modules for module in root.modules()]
    try:
        for root in modules:
            root.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@dataclass
class Inversion:
    """Masks and probabilities of a batch of RoIs under Inverted Attention."""

    mask: Tensor
    """1 on, 0 off, 1 everywhere for RoIs that are not selected: (R, 1, P, P) for "spatial",
    (R, C, 1, 1) for "channel", (R, C, P, P) for "both"."""
    weights: Tensor
    """(R, C) channel weights w."""
    attention: Tensor
    """(R, P, P) attention map M."""
    selected: Tensor
    """(R,) bool: RoIs whose mask is kept."""
    prob_before: Tensor
    """(R,) probability of the true class; without meaning for ignored RoIs."""
    prob_after: Tensor | None = None
    """(R,) the same with the RoI's mask, selected or not; known for the "hard" choice only."""
    change: Tensor | None = None
    """(R,) max(before - after - min_change, 0); known for the "hard" choice only."""

    def statistics(self) -> dict[str, Tensor]:
        """Shares of RoIs and of elements masked; mean probability of the masked RoIs' true class.

        Without a masked RoI the probabilities are 0.
        """
        count = self.selected.sum()
        numbers = {
            "masked_rois": count / max(len(self.selected), 1),
            "masked_elements": (self.mask == 0).sum() / max(self.mask.numel(), 1),
            "prob_before": (self.prob_before * self.selected).sum() / count.clamp(min=1),
        }
        if self.prob_after is not None:
            numbers["prob_after"] = (self.prob_after * self.selected).sum() / count.clamp(min=1)
        return numbers


class InvertedAttention:
    """Finds, for each RoI, the mask that hides what drives its true class. For training only.

    It has no parameters and is not a module: a model's state does not depend on it.
    """

    @configurable
    def __init__(
        self,
        *,
        mode: str = "spatial",
        spatial_drop: float = 18 / 49,
        channel_drop: float = 1 / 3,
        roi_choice: str = "hard",
        fg_fraction: float = 1 / 5,
        bg_fraction: float = 1 / 30,
        min_change: float = 0.01,
        apply_to: str = "both",
        start_iter: int = 0,
    ) -> None:
        """Set it up; the defaults are the first author's.

        Args:
            mode: "spatial" hides the strongest places; "channel" the channels with the largest
                weights; "both" those places in those channels; "random" is spatial or channel,
                drawn in each call.
            spatial_drop: share of the places to hide.
            channel_drop: share of the channels to hide.
            roi_choice: "hard" masks the RoIs whose true class suffers most; "random" draws as many
                RoIs; "all" masks all but ignored ones.
            fg_fraction: "hard" and "random": at most this share of the foreground RoIs.
            bg_fraction: likewise of the background RoIs.
            min_change: "hard": the probability must fall by more than this.
            apply_to: in a Double-Head, mask the features of "both" heads or the fc head's ("cls").
            start_iter: first iteration of the training in which RoI heads use it.

        Raises:
            ValueError: for a setting that is out of range, with its config key.
        """
        key = "MODEL.INVERTED_ATTENTION"
        for name, choice, allowed in (
            ("MODE", mode, _MODES),
            ("ROI_CHOICE", roi_choice, _CHOICES),
            ("APPLY_TO", apply_to, _TARGETS),
        ):
            if choice not in allowed:
                raise ValueError(f"{key}.{name} is '{choice}': it must be one of {allowed}")
        for name, share in (
            ("SPATIAL_DROP", spatial_drop),
            ("CHANNEL_DROP", channel_drop),
            ("FG_FRACTION", fg_fraction),
            ("BG_FRACTION", bg_fraction),
            ("MIN_CHANGE", min_change),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{key}.{name} is {share}: it must be in [0, 1]")
        self.mode = mode
        self.spatial_drop = spatial_drop
        self.channel_drop = channel_drop
        self.roi_choice = roi_choice
        self.fg_fraction = fg_fraction
        self.bg_fraction = bg_fraction
        self.min_change = min_change
        self.apply_to = apply_to
        self.start_iter = start_iter

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Arguments from ``MODEL.INVERTED_ATTENTION``."""
        node = cfg.MODEL.INVERTED_ATTENTION
        return {name.lower(): value for name, value in node.items() if name != "ENABLED"}

    def __call__(
        self,
        features: Tensor,
        labels: Tensor,
        score: Callable[[Tensor], Tensor],
        *,
        modules: Iterable[nn.Module] = (),
        sigmoid: bool = False,
    ) -> tuple[Tensor, Inversion]:
        """Mask RoI features.

        Costs, besides the mask itself, one forward of ``score``, one backward to its input and, for
        the "hard" choice, one more forward without gradient. Parameters and their ``.grad`` are
        not touched, nothing is drawn from a random generator unless the settings say "random".

        Args:
            features: (R, C, P, P).
            labels: (R,) true classes.
            score: maps features to class logits (R, K + 1), background last. Run in float32.
            modules: what ``score`` runs; in eval mode meanwhile, so that no dropout disturbs and
                no running statistic moves.
            sigmoid: probabilities are sigmoids, not softmax. The background's logit means nothing
                then, and background RoIs are left alone like ignored ones.

        Returns:
            The masked features, connected to ``features`` where they are not masked, and how the
            masks came about.
        """
        with eval_mode(modules), torch.autocast(features.device.type, enabled=False):
            columns = labels.clamp(min=0)[:, None]
            inputs = features.detach().float().requires_grad_()
            with torch.enable_grad():
                logits = score(inputs)
                # RoIs do not see each other, so ignored ones may stay in the sum.
                total = logits.gather(1, columns).sum()
                (gradient,) = torch.autograd.grad(total, inputs)
            num_classes = logits.shape[1] - 1
            not_ignored = labels >= 0
            foreground = not_ignored & (labels < num_classes)
            valid = foreground if sigmoid else not_ignored
            with torch.no_grad():
                weights, attention = attention_map(inputs, gradient)
                mask = self._mask(weights, attention)
                before = _true_probability(logits, columns, sigmoid)
                after = change = None
                if self.roi_choice == "hard":
                    after = _true_probability(score(inputs * mask), columns, sigmoid)
                    change = (before - after - self.min_change).clamp(min=0)
                selected = self._choose(valid, foreground, change)
                mask = mask.where(selected[:, None, None, None], 1.0)
        inversion = Inversion(mask, weights, attention, selected, before, after, change)
        return features * mask.to(features), inversion

    def _mask(self, weights: Tensor, attention: Tensor) -> Tensor:
        mode = self.mode
        if mode == "random":
            mode = "spatial" if torch.rand(()) < 0.5 else "channel"
        off: Tensor
        if mode in ("spatial", "both"):
            off = strongest(attention.flatten(1), self.spatial_drop).view_as(attention)[:, None]
        if mode in ("channel", "both"):
            channels = strongest(weights, self.channel_drop)[:, :, None, None]
            off = off & channels if mode == "both" else channels
        return (~off).to(attention.dtype)

    def _choose(self, valid: Tensor, foreground: Tensor, change: Tensor | None) -> Tensor:
        if self.roi_choice == "all":
            return valid
        if change is None:  # "random": a random order takes the place of the ranking
            change = 1 - torch.rand(len(valid), device=valid.device)  # in (0, 1]
        background = valid ^ foreground  # as all of the foreground is valid
        groups = torch.stack([foreground, background])
        return hardest(change, groups, (self.fg_fraction, self.bg_fraction))


def _true_probability(logits: Tensor, columns: Tensor, sigmoid: bool) -> Tensor:
    """Return the probabilities (R,) of the classes in ``columns`` (R, 1)."""
    probabilities = logits.sigmoid() if sigmoid else logits.softmax(dim=1)
    return probabilities.gather(1, columns)[:, 0]
