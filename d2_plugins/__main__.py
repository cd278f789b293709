"""``python -m d2_plugins <command>``, the same as ``d2-plugins <command>``."""

from .cli.main import main

if __name__ == "__main__":  # false in the worker processes of a training, which import this file
    raise SystemExit(main())
