"""Weights by name and by file: safe reading, renaming, and a report of what they filled."""

from .checkpointer import PluginCheckpointer
from .cspnet_weights import convert_darknet_cspnet, convert_timm_cspnet, read_darknet_weights
from .load_report import LoadReport
from .reading import UnsafeCheckpointError, read_checkpoint
from .resnet_weights import convert_resnet
from .sources import Source, find_source

__all__ = [
    "LoadReport",
    "PluginCheckpointer",
    "Source",
    "UnsafeCheckpointError",
    "convert_darknet_cspnet",
    "convert_resnet",
    "convert_timm_cspnet",
    "find_source",
    "read_checkpoint",
    "read_darknet_weights",
]
