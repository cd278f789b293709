"""The components. Importing this package registers all of them with detectron2."""

from . import backbone, proposal_generator, roi_heads  # noqa: F401  (registration)
