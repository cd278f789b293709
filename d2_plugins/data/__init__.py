"""Data sets by name, your own data, and what makes both fit for training.

Importing this registers ``shapes_{train,val}``, ``penn_fudan_{train,val}`` and
``voc_{2007,2012}_*_coco`` in detectron2's catalogs; a name that is taken is left as it is.
"""

from .custom import CocoSummary, CustomData, register_coco_json, register_custom
from .errors import DatasetError
from .hints import missing_dataset_hint
from .preflight import check_dataset
from .registration import dataset_root, register_all
from .report import Finding, Report

__all__ = [
    "CocoSummary",
    "CustomData",
    "DatasetError",
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
