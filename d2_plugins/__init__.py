"""d2_plugins: CSPNet, Cascade RPN, Double-Head and Inverted Attention as detectron2 components.

Importing this package registers every component in detectron2's BACKBONE, PROPOSAL_GENERATOR and
ROI_HEADS registries and changes nothing else: no default of detectron2, timm or torch is edited.

    >>> from d2_plugins import get_cfg, model_zoo
    >>> cfg = get_cfg()
    >>> cfg.merge_from_file(model_zoo.get_config_file("csp_cascade.yaml"))
"""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if sys.argv[:1] == ["-m"] and ["-m", __name__] == sys.orig_argv[1:3]:  # python -m d2_plugins
    from .startup import announce, hide_messages

    announce(" ".join(sys.orig_argv[3:4]))
    hide_messages()

__version__ = "0.1.0"

if find_spec("detectron2") is None:
    raise ImportError(
        "d2_plugins needs detectron2, which is not on PyPI under its own name. Install it, after "
        "torch, in one of two ways:\n"
        "  pip install --no-build-isolation "
        "'git+https://github.com/facebookresearch/detectron2.git'\n"
        "  or, without a compiler or access to GitHub, from the d2_plugins checkout: make install\n"
        "docs/installing.md has the details."
    )

from . import model_zoo, modeling  # modeling is imported for its registrations
from .config import add_d2_plugins_config, get_cfg

if TYPE_CHECKING:
    from .visualization.detector import Detector

__all__ = [
    "Detector",
    "__version__",
    "add_d2_plugins_config",
    "get_cfg",
    "model_zoo",
    "modeling",
]


def __getattr__(name: str) -> object:
    """Import Detector when it is first used; it needs OpenCV and detectron2's engine."""
    if name == "Detector":
        from .visualization.detector import Detector

        return Detector
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
