"""The adaptive convolution of Cascade RPN: a 3x3 convolution whose taps follow the cells' boxes."""

from .convolution import AdaptiveConv2d, adaptive_conv2d

__all__ = ["AdaptiveConv2d", "adaptive_conv2d"]
