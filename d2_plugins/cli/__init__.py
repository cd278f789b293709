"""The ``d2-plugins`` commands: one module per command, named after it."""

import sys

# While ``python -m d2_plugins.cli.train`` looks for its module, sys.argv[0] is "-m". Without this
# check it would exit with status 0 and do nothing.
if sys.argv[:1] == ["-m"]:
    print("error: run 'd2-plugins <command>' or 'python -m d2_plugins <command>'", file=sys.stderr)
    raise SystemExit(2)
