"""d2_plugins: CSPNet, Cascade RPN, Double-Head and Inverted Attention as detectron2 components.

Importing this package registers every component in detectron2's BACKBONE, PROPOSAL_GENERATOR and
ROI_HEADS registries and changes nothing else: no default of detectron2, timm or torch is edited.

    >>> from d2_plugins import get_cfg, model_zoo
    >>> cfg = get_cfg()
    >>> cfg.merge_from_file(model_zoo.get_config_file("csp_cascade.yaml"))
"""

from importlib.util import find_spec

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

from . import modeling  # noqa: F401  (imported for its registrations)
from .config import add_d2_plugins_config, get_cfg

__all__ = ["__version__", "add_d2_plugins_config", "get_cfg", "model_zoo"]


def __getattr__(name: str) -> object:
    # model_zoo builds on the engine-free parts only, yet most users of a single layer never need
    # it: resolve it on first use so that `import d2_plugins` stays cheap.
    if name == "model_zoo":
        from importlib import import_module

        return import_module(".model_zoo", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
