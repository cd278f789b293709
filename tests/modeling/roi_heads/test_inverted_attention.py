"""The component alone: against the author's algorithm, closed forms and counts."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2_plugins.modeling.roi_heads import Inversion, InvertedAttention
from d2_plugins.modeling.roi_heads.inverted_attention import hardest, strongest
from tests.support.helpers import shared_path

K = 5  # foreground classes


def make_head(channels: int = 8, size: int = 7, *extra: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * size**2, 32), nn.ReLU(), *extra, nn.Linear(32, K + 1)
    )


def make_batch(count: int = 64, foreground: int = 16, size: int = 7) -> tuple[Tensor, Tensor]:
    labels = torch.full((count,), K)
    labels[:foreground] = torch.randint(K, (foreground,))
    return torch.randn(count, 8, size, size), labels


def zeros_per_roi(inversion: Inversion, features: Tensor) -> Tensor:
    return (inversion.mask.expand_as(features) == 0).flatten(1).sum(1)


def test_equals_the_author() -> None:
    with np.load(shared_path("oracles/inverted_attention.npz"), allow_pickle=False) as arrays:
        ref = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    # There background is class 0, here it is the last.
    to_ours = [*range(1, K + 1), 0]
    labels = (ref["labels"] - 1) % (K + 1)

    def score(x: Tensor) -> Tensor:
        for name in ("f1", "f2"):
            x = F.linear(x.flatten(1), ref[f"head/{name}.weight"], ref[f"head/{name}.bias"]).relu()
        return F.linear(x, ref["pred/cls.weight"], ref["pred/cls.bias"])[:, to_ours]

    masked, found = InvertedAttention()(ref["feat"], labels, score)
    torch.testing.assert_close(found.weights, ref["weights"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.attention.flatten(1), ref["cam"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.change, ref["change"], rtol=1e-5, atol=1e-6)
    assert torch.equal(found.selected, ref["selected"])
    assert torch.equal(found.mask, ref["mask"])
    assert torch.equal(masked, ref["final_in"])
    loss = F.cross_entropy(score(masked), labels)
    assert loss.item() == pytest.approx(ref["loss_cls"].item(), rel=1e-5)
    assert found.selected.any()
    assert not found.selected.all()


def test_closed_form_of_a_linear_head() -> None:
    features, labels = make_batch(6, 4)
    weight = torch.randn(K + 1, 8, 7, 7)
    _, found = InvertedAttention(roi_choice="all")(
        features, labels, lambda x: torch.einsum("kcij,rcij->rk", weight, x)
    )
    for r in range(6):
        w = [weight[labels[r], c].mean() for c in range(8)]
        attention = sum(w[c] * features[r, c] for c in range(8))
        off = attention > attention.flatten().sort(descending=True).values[18]
        torch.testing.assert_close(found.weights[r], torch.stack(w))
        torch.testing.assert_close(found.attention[r], attention)
        assert torch.equal(found.mask[r, 0] == 0, off)
        # The 18 hottest places and no others are off.
        assert attention[off].min() > attention[~off].max()
    assert not features.requires_grad


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("spatial", lambda s: 8 * round(18 / 49 * s * s)),
        ("channel", lambda s: round(8 / 3) * s * s),
        ("both", lambda s: round(8 / 3) * round(18 / 49 * s * s)),
    ],
)
def test_exact_number_of_zeros(mode: str, expected: Callable[[int], int], size: int) -> None:
    features, labels = make_batch(20, 10, size)
    ia = InvertedAttention(mode=mode, roi_choice="all")
    masked, found = ia(features, labels, make_head(size=size))
    assert (zeros_per_roi(found, features) == expected(size)).all()
    assert torch.equal(masked, features * found.mask)
    share = found.statistics()["masked_elements"].item()
    assert share == pytest.approx(expected(size) / (8 * size**2))


def test_combined_mask_is_the_outer_product_of_its_parts() -> None:
    features, labels = make_batch(10, 5)
    head = make_head()

    def off(mode: str, **settings: float) -> Tensor:
        ia = InvertedAttention(mode=mode, roi_choice="all", **settings)
        return ia(features, labels, head)[1].mask == 0

    assert torch.equal(off("both"), off("spatial") & off("channel"))
    every_channel = off("both", channel_drop=1.0)
    assert torch.equal(every_channel, off("spatial").expand_as(every_channel))


def test_channel_mode_hides_the_channels_with_the_largest_weights() -> None:
    features, labels = make_batch(10, 5)
    _, found = InvertedAttention(mode="channel", roi_choice="all")(features, labels, make_head())
    for mask, weights in zip(found.mask.flatten(1), found.weights, strict=True):
        assert set((mask == 0).nonzero()[:, 0].tolist()) == set(weights.topk(3).indices.tolist())


def test_random_mode_draws_spatial_or_channel() -> None:
    features, labels = make_batch(4, 2)
    head = make_head()
    shapes = set()
    for seed in range(8):
        torch.manual_seed(seed)
        ia = InvertedAttention(mode="random", roi_choice="all")
        shapes.add(ia(features, labels, head)[1].mask.shape[1:])
    assert shapes == {(1, 7, 7), (8, 1, 1)}


def test_ties_are_kept() -> None:
    row = torch.tensor([[3.0, 3.0, 2.0, 2.0, 2.0, 1.0]])
    for share, expected in ((0, 0), (1 / 6, 0), (2 / 6, 2), (3 / 6, 2), (4 / 6, 2), (5 / 6, 5)):
        assert strongest(row, share).sum() == expected
    assert strongest(row, 1.0).all()
    assert not strongest(torch.zeros(3, 49), 18 / 49).any()


def test_every_feature_the_same_masks_nothing() -> None:
    features, labels = torch.ones(8, 8, 7, 7), make_batch(8, 4)[1]
    _, found = InvertedAttention()(features, labels, make_head())
    assert not found.selected.any()
    assert (found.mask == 1).all()


@pytest.mark.parametrize(
    ("foreground", "background", "most_fg", "most_bg"),
    # Half to even, as in the reference: 15 / 30 -> 0, 45 / 30 -> 2.
    [(128, 384, 26, 13), (2, 15, 0, 0), (3, 45, 1, 2), (5, 0, 1, 0), (0, 60, 0, 2)],
)
def test_number_of_hard_rois(foreground: int, background: int, most_fg: int, most_bg: int) -> None:
    count = foreground + background
    is_fg = torch.zeros(count, dtype=torch.bool)
    is_fg[torch.randperm(count)[:foreground]] = True
    change = torch.rand(count) + 0.1  # every RoI is a candidate, none ties
    both = hardest(change, torch.stack([is_fg, ~is_fg]), (1 / 5, 1 / 30))
    for members, most in ((is_fg, most_fg), (~is_fg, most_bg)):
        chosen = both & members
        ranking = change.where(members, 0).argsort(descending=True)
        assert set(chosen.nonzero()[:, 0].tolist()) == set(ranking[:most].tolist())


def test_rois_that_do_not_change_are_never_chosen() -> None:
    change = torch.tensor([0.0, 0.0, 0.3, 0.0])
    everyone = torch.ones(1, 4, dtype=torch.bool)
    assert hardest(change, everyone, [1.0]).tolist() == [False, False, True, False]
    assert hardest(change, everyone, [0.5]).tolist() == [False, False, True, False]
    assert not hardest(change, everyone, [0.0]).any()


def test_random_choice_takes_the_same_number_of_rois() -> None:
    features, labels = make_batch(512, 128)
    ia = InvertedAttention(roi_choice="random")
    selected = [ia(features, labels, make_head())[1].selected for _ in range(2)]
    for s in selected:
        assert (s[labels < K].sum(), s[labels == K].sum()) == (26, 13)
    assert not torch.equal(*selected)


@pytest.mark.parametrize("choice", ["hard", "random", "all"])
@pytest.mark.parametrize(
    ("count", "foreground", "ignored"), [(0, 0, 0), (1, 1, 0), (9, 9, 0), (9, 0, 0), (9, 4, 3)]
)
def test_corner_cases(choice: str, count: int, foreground: int, ignored: int) -> None:
    features, labels = make_batch(count, foreground)
    labels[count - ignored :] = -1
    features.requires_grad_()
    ia = InvertedAttention(roi_choice=choice, fg_fraction=1.0, bg_fraction=1.0, min_change=0.0)
    masked, found = ia(features, labels, make_head())
    assert masked.shape == features.shape
    masked.sum().backward()  # connected, even when empty
    assert not found.selected[labels < 0].any()
    assert all(torch.isfinite(value) for value in found.statistics().values())
    if choice != "hard":
        assert torch.equal(found.selected, labels >= 0)
    elif count:
        assert torch.equal(found.selected, (labels >= 0) & (found.change > 0))


def test_ignored_rois_change_nothing_for_the_others() -> None:
    features, labels = make_batch(40, 10)
    head = make_head()
    _, found = InvertedAttention()(features, labels, head)
    more = torch.cat([features, torch.randn(5, 8, 7, 7)])
    _, with_ignored = InvertedAttention()(more, torch.cat([labels, torch.full((5,), -1)]), head)
    assert torch.equal(with_ignored.mask[:40], found.mask)
    assert (with_ignored.mask[40:] == 1).all()


def test_a_sigmoid_loss_leaves_the_background_alone() -> None:
    features, labels = make_batch(40, 10)
    head = make_head()
    ia = InvertedAttention(fg_fraction=1.0, bg_fraction=1.0, min_change=0.0)
    _, found = ia(features, labels, head, sigmoid=True)
    assert not found.selected[labels == K].any()
    assert found.selected[labels < K].any()
    expected = head(features).sigmoid().gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(found.prob_before, expected)


def test_rois_do_not_see_each_other() -> None:
    # A batch norm would mix them if it ran in training mode.
    norm = nn.BatchNorm1d(32)
    norm.running_mean.uniform_()
    head = make_head(8, 7, norm)
    features, labels = make_batch(30, 10)
    ia = InvertedAttention(roi_choice="all")
    mask = ia(features, labels, head, modules=[head])[1].mask
    order = torch.randperm(30)
    assert torch.equal(
        ia(features[order], labels[order], head, modules=[head])[1].mask, mask[order]
    )
    others = torch.cat([features[:1], torch.randn(29, 8, 7, 7)])
    assert torch.equal(ia(others, labels, head, modules=[head])[1].mask[0], mask[0])


@pytest.mark.parametrize("factor", [2.0**10, 2.0**-6])
def test_the_score_s_scale_does_not_matter(factor: float) -> None:
    features, labels = make_batch(30, 10)
    head = make_head()
    ia = InvertedAttention(roi_choice="all")
    mask = ia(features, labels, head)[1].mask
    assert torch.equal(ia(features, labels, lambda x: head(x) * factor)[1].mask, mask)


def test_outer_gradient_is_that_of_the_masked_product() -> None:
    features, labels = make_batch()
    head = make_head()
    ia = InvertedAttention(mode="both", fg_fraction=0.5, bg_fraction=0.5, min_change=0.0)
    features.requires_grad_()
    masked, found = ia(features, labels, head)
    F.cross_entropy(head(masked), labels).backward()
    manual = features.detach().requires_grad_()
    F.cross_entropy(head(manual * found.mask), labels).backward()
    assert torch.equal(features.grad, manual.grad)
    off = (found.mask == 0).expand_as(features)
    assert off.any()
    assert not features.grad[off].any()


def test_nothing_leaks_from_the_inner_pass() -> None:
    head = make_head(8, 7, nn.BatchNorm1d(32), nn.Dropout(0.5)).train()
    head[3].eval()  # someone keeps the statistics of this one on purpose
    features, labels = make_batch()
    features.requires_grad_()
    for p in head.parameters():
        p.grad = torch.rand_like(p)
    before = {name: p.grad.clone() for name, p in head.named_parameters()}
    state = {name: value.clone() for name, value in head.state_dict().items()}
    flags = [m.training for m in head.modules()]
    rng = torch.get_rng_state()
    masked, _ = InvertedAttention()(features, labels, head, modules=[head])
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in head.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in head.state_dict().items())
    (masked.sum() * 0).backward()
    assert not features.grad.any()
    assert all(torch.equal(p.grad, before[name]) for name, p in head.named_parameters())


def test_training_flags_come_back_after_an_exception() -> None:
    head = make_head(8, 7, nn.Dropout(0.5)).train()
    head[3].eval()

    def fail(x: Tensor) -> Tensor:
        assert not any(m.training for m in head.modules())
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        InvertedAttention()(*make_batch(), fail, modules=[head])
    assert [m.training for m in head] == [True, True, True, False, True]
    assert head.training


def test_works_where_the_caller_has_gradients_off() -> None:
    features, labels = make_batch()
    head = make_head()
    expected = InvertedAttention()(features, labels, head)[1].mask
    with torch.no_grad():
        assert torch.equal(InvertedAttention()(features, labels, head)[1].mask, expected)


def test_the_inner_pass_is_float32_under_autocast() -> None:
    features, labels = make_batch()
    head = make_head()
    expected = InvertedAttention()(features, labels, head)[1]
    with torch.autocast("cpu", torch.bfloat16):
        found = InvertedAttention()(features, labels, head)[1]
        half = InvertedAttention()(features.bfloat16(), labels, head)[0]
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.change, expected.change)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(("choice", "forwards"), [("hard", 2), ("random", 1), ("all", 1)])
def test_cost(choice: str, forwards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = make_batch()
    head = make_head()
    calls = {"forward": 0, "grad": 0}
    head.register_forward_hook(lambda *_: calls.update(forward=calls["forward"] + 1))
    grad = torch.autograd.grad

    def counted(*args: object, **kwargs: object) -> object:
        calls["grad"] += 1
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    InvertedAttention(roi_choice=choice)(features, labels, head)
    assert calls == {"forward": forwards, "grad": 1}


def test_a_trained_head_loses_more_than_by_a_random_mask() -> None:
    # Each class shows in its own channel at one of four spots of the RoI.
    count = 400
    labels = torch.randint(K, (count,))
    features = torch.randn(count, 8, 7, 7) * 0.3
    spots = torch.randint(2, (count, 2)) * 4
    for r in range(count):
        i, j = spots[r]
        features[r, labels[r], i : i + 3, j : j + 3] += 2
    head = make_head()
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(head(features), labels).backward()
        optimizer.step()
    ia = InvertedAttention(fg_fraction=1.0, min_change=0.0)
    _, found = ia(features, labels, head)
    order = torch.rand(count, 1, 49).argsort(2)
    random_mask = (order >= 18).view(count, 1, 7, 7)
    after_random = head(features * random_mask).softmax(1).gather(1, labels[:, None])[:, 0]
    assert found.prob_before.mean() > 0.95
    assert found.prob_after.mean() < after_random.mean() - 0.2
    assert (found.prob_after < found.prob_before).float().mean() > 0.95
    # The heat is where the object is.
    heat = torch.zeros(count)
    for r in range(count):
        i, j = spots[r]
        heat[r] = (found.mask[r, 0, i : i + 3, j : j + 3] == 0).float().mean()
    assert heat.mean() > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "places"}, r"MODEL.INVERTED_ATTENTION.MODE is 'places'.*'spatial'"),
        ({"roi_choice": "easy"}, r"MODEL.INVERTED_ATTENTION.ROI_CHOICE is 'easy'"),
        ({"apply_to": "conv"}, r"MODEL.INVERTED_ATTENTION.APPLY_TO is 'conv'"),
        ({"spatial_drop": 1.5}, r"MODEL.INVERTED_ATTENTION.SPATIAL_DROP is 1.5.*\[0, 1\]"),
        ({"bg_fraction": -0.1}, r"MODEL.INVERTED_ATTENTION.BG_FRACTION is -0.1"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InvertedAttention(**settings)
