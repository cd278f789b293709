"""Makes detectron2's own tools, and other people's scripts, know our components.

detectron2 imports the module named in ``DETECTRON2_ENV_MODULE`` at start-up and calls its
``setup_environment()``:

    DETECTRON2_ENV_MODULE=d2_plugins.env python any_detectron2_script.py ...
"""


def setup_environment() -> None:
    """Register every component of d2_plugins in detectron2's registries."""
    import d2_plugins  # noqa: F401  (imported for its registrations)
