"""Whether a detector shows its backbone the images that its weights were trained on.

detectron2's defaults (BGR, mean of BGR, no division) fit the weights of MSRA only. With others the
loss of accuracy is silent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["IMAGENET_STATISTICS", "PixelStatistics"]

# In units of the 0..255 scale: 127 and 127.5 are the same, 127.5 and 123.7 are not.
_TOLERANCE = 1.0


@dataclass(frozen=True, kw_only=True)
class PixelStatistics:
    """Mean and standard deviation of RGB images in [0, 1], as timm and torchvision state them."""

    mean: Sequence[float]
    std: Sequence[float]

    def mismatch(
        self, mean: Sequence[float], std: Sequence[float], image_format: str | None = None
    ) -> str | None:
        """What is wrong with a config, and what to set instead.

        Args:
            mean: ``MODEL.PIXEL_MEAN``, on the 0..255 scale.
            std: ``MODEL.PIXEL_STD``.
            image_format: ``INPUT.FORMAT``; None leaves it unchecked.

        Returns:
            A sentence, or None if all is well.
        """
        expected_mean = [round(255 * value, 3) for value in self.mean]
        expected_std = [round(255 * value, 3) for value in self.std]
        if (
            image_format in ("RGB", None)
            and _close(mean, expected_mean)
            and _close(std, expected_std)
        ):
            return None
        now = "" if image_format is None else f"INPUT.FORMAT {image_format}, "
        return (
            f"These weights expect other pixels than {now}MODEL.PIXEL_MEAN {list(mean)}, "
            f"MODEL.PIXEL_STD {list(std)}: set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN "
            f"{expected_mean}, MODEL.PIXEL_STD {expected_std}"
        )


def _close(values: Sequence[float], expected: Sequence[float]) -> bool:
    return len(values) == len(expected) and all(
        abs(value - other) <= _TOLERANCE for value, other in zip(values, expected, strict=True)
    )


IMAGENET_STATISTICS = PixelStatistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Those of torchvision's weights, and of most of timm's."""
