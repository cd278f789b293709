"""Check of a config's pixel format, mean and std against those that the weights expect.

detectron2's defaults (BGR, BGR means, std 1) fit only MSRA's weights. With other weights they cost
accuracy, and nothing else shows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["IMAGENET_STATISTICS", "PixelStatistics"]

# On the 0..255 scale: 127 and 127.5 count as equal, 127.5 and 123.7 do not.
_TOLERANCE = 1.0


@dataclass(frozen=True, kw_only=True)
class PixelStatistics:
    """Mean and standard deviation of RGB images in [0, 1], as timm and torchvision state them."""

    mean: Sequence[float]
    std: Sequence[float]

    def mismatch(
        self, mean: Sequence[float], std: Sequence[float], image_format: str | None = None
    ) -> str | None:
        """Compare the pixel settings of a config with these statistics.

        Args:
            mean: ``MODEL.PIXEL_MEAN``, on the 0..255 scale.
            std: ``MODEL.PIXEL_STD``, on the 0..255 scale.
            image_format: ``INPUT.FORMAT``; None to skip its check.

        Returns:
            A sentence with the settings to use instead, or None if they agree.
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
"""Statistics of torchvision's ImageNet weights, and of most of timm's."""
