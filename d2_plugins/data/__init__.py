"""Datasets by name, your own data, the training loader and the pre-flight check.

Importing this package registers ``shapes_{train,val}``, ``penn_fudan_{train,val}`` and
``voc_{2007,2012}_*_coco`` in detectron2's catalogs; names that are already taken stay unchanged.
"""

from .custom import CocoSummary, CustomData, register_coco_json, register_custom
from .datasets.missing import missing_dataset_hint
from .datasets.registration import dataset_root, register_all
from .preflight import Finding, Report, check_dataset

__all__ = [
    "CocoSummary",
    "CustomData",
    "Finding",
    "Report",
    "check_dataset",
    "dataset_root",
    "missing_dataset_hint",
    "register_all",
    "register_coco_json",
    "register_custom",
]

register_all()
