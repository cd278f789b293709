"""Split of a dataset into training and validation images, stratified by class."""

import random
from collections import Counter
from collections.abc import Hashable, Sequence

__all__ = ["stratified_split"]


def stratified_split(
    labels: Sequence[set[Hashable]], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split images so that each class has about the same fraction of its images in both parts.

    Iterative stratification (Sechidis et al., ECML 2011, algorithm 1): images of the rarest class
    are distributed first, each to the part that lacks most images of that class. A class with two
    images or more is in both parts where the other classes of its images permit it.

    Args:
        labels: classes of each image; images without objects form a class of their own.
        fraction: fraction of the images in the first part, between 0 and 1.
        seed: seed of the order in which images are distributed.

    Returns:
        Indices of the images in the first and in the second part, ascending.
    """
    classes: list[set[Hashable]] = [set(of_image) or {None} for of_image in labels]
    counts = Counter(label for of_image in classes for label in of_image)
    fractions = (fraction, 1 - fraction)
    lacking = [
        {c: max(part * n, 1.0) if n > 1 else part * n for c, n in counts.items()}
        for part in fractions
    ]
    room = [part * len(labels) for part in fractions]
    parts: tuple[list[int], list[int]] = ([], [])
    remaining = list(range(len(labels)))
    random.Random(seed).shuffle(remaining)
    while remaining:
        left = Counter(label for image in remaining for label in classes[image])
        rarest = min(left, key=lambda label: (left[label], str(label)))
        for image in [image for image in remaining if rarest in classes[image]]:
            chosen = max((0, 1), key=lambda part: (lacking[part][rarest], room[part]))
            parts[chosen].append(image)
            room[chosen] -= 1
            for label in classes[image]:
                lacking[chosen][label] -= 1
        remaining = [image for image in remaining if rarest not in classes[image]]
    return sorted(parts[0]), sorted(parts[1])
