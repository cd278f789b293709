"""The split is seeded, complete and stratified by class."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2_plugins.data.prepare.split import stratified_split

LABELS = st.lists(st.sets(st.sampled_from("abcd")), min_size=2, max_size=40)


@given(labels=LABELS, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 9))
def test_every_image_is_in_one_part_and_the_seed_repeats(
    labels: list[set[str]], fraction: float, seed: int
) -> None:
    first, second = stratified_split(labels, fraction, seed)
    assert sorted(first + second) == list(range(len(labels)))
    assert stratified_split(labels, fraction, seed) == (first, second)


@pytest.mark.parametrize("fraction", [0.5, 0.8, 0.9])
def test_classes_have_their_fraction_in_both_parts(fraction: float) -> None:
    """Frequencies from 0.9 to 0.01; a random split of the rare ones is far off."""
    rng = random.Random(0)
    odds = {"a": 0.9, "b": 0.5, "c": 0.2, "d": 0.05, "e": 0.01}
    labels = [{name for name, p in odds.items() if rng.random() < p} for _ in range(1000)]
    first, _ = stratified_split(labels, fraction, seed=0)
    assert abs(len(first) - 1000 * fraction) <= 10
    total = Counter(name for of_image in labels for name in of_image)
    part = Counter(name for image in first for name in labels[image])
    for name, count in total.items():
        assert abs(part[name] - fraction * count) <= max(1, 0.02 * count), name


def test_a_class_with_two_images_is_in_both_parts() -> None:
    labels = [{"rare"} if image < 2 else {"common"} for image in range(50)]
    for seed in range(5):
        first, second = stratified_split(labels, 0.8, seed)
        assert sum(image < 2 for image in first) == sum(image < 2 for image in second) == 1


def test_another_seed_gives_another_split() -> None:
    labels = [{"a"} for _ in range(40)]
    assert stratified_split(labels, 0.5, 0) != stratified_split(labels, 0.5, 1)
