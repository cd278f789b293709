"""Pre-flight check of a COCO dataset, before training."""

from .check import check_dataset
from .findings import Finding, Report

__all__ = ["Finding", "Report", "check_dataset"]
