"""Publish a trained detector on the Hugging Face Hub, with a model card.

The repository gets the weights without the state of the training (model_final.pth), config.yaml,
classes.json and README.md, a model card made from the files of the run. Then everyone can use

    Detector("hf://OWNER/NAME")  and  MODEL.WEIGHTS hf://OWNER/NAME

--output writes these files to a folder and uploads nothing: look at the card, fill in what only
you know (intended use, licence), and give it back with --card. Uploading needs a token with the
right to write, from HF_TOKEN or 'hf auth login'.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError, usage_errors
from ..hub import push_run, write_repository
from .parsers import exit_status, text_parser

__all__ = ["main"]

_EXAMPLE = """
Examples:
    $ d2-plugins push output/own OWNER/NAME --license apache-2.0 --output published
    $ d2-plugins push output/own OWNER/NAME --card published/README.md
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Publish a trained detector.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0; 2 if the run is not complete or the hub refuses it.
    """
    parser = text_parser(__doc__, _EXAMPLE)
    parser.add_argument("run", help="output folder of a run, or one of its checkpoints")
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository on the hub")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write here, upload nothing")
    parser.add_argument("--card", type=Path, metavar="FILE", help="model card to use, in Markdown")
    parser.add_argument("--license", metavar="ID", help="licence of the weights, e.g. apache-2.0")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    return exit_status(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    if args.card is not None and not args.card.is_file():
        raise UsageError(f"--card: there is no file '{args.card}'")
    options = {"license_id": args.license, "card": args.card}
    if args.output is None:
        url = push_run(args.run, args.repository, private=args.private, **options)
        print(f"pushed {args.run} to {url}")
        print(f'load it with Detector("hf://{args.repository}")')
        return 0
    with usage_errors():
        write_repository(args.run, args.output, repository=args.repository, **options)
    print(f"wrote {', '.join(sorted(path.name for path in args.output.iterdir()))}")
    print(f"look at {args.output / 'README.md'}, then push it with --card")
    return 0
