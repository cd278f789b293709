"""Set-up of detectron2's own tools, and of other scripts, for the components of d2_plugins.

detectron2 imports the module named in ``DETECTRON2_ENV_MODULE`` at start-up and calls its
``setup_environment()``:

    DETECTRON2_ENV_MODULE=d2_plugins.env python any_detectron2_script.py ...
"""


def setup_environment() -> None:
    """Register every component of d2_plugins and add its keys to detectron2's default config.

    detectron2's ``get_cfg`` then returns configs into which the YAML files of this package merge.
    A plain ``import d2_plugins`` leaves detectron2's defaults as they are.
    """
    from detectron2.config.defaults import _C

    import d2_plugins  # registers the components

    d2_plugins.add_d2_plugins_config(_C)
