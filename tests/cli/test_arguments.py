"""The command line: what argparse would let through silently is refused with a reason."""

import pytest

from d2_plugins.cli.arguments import parse_args


def test_detectron2_arguments_and_opts_pass() -> None:
    args = parse_args(
        ["--config-file", "a.yaml", "--num-gpus", "0", "--resume", "SOLVER.MAX_ITER", "10"]
    )
    assert args.resume
    assert args.num_gpus == 0
    assert args.opts == ["SOLVER.MAX_ITER", "10"]
    assert args.dist_url == "auto"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["SOLVER.MAX_ITER", "1", "--resume"], "--resume stands after the KEY VALUE pairs"),
        (["SOLVER.MAX_ITER"], "odd number of words"),
        (["--num-gpus", "-1"], "--num-gpus is at least 0"),
        (["--num-machines", "2"], "needs --dist-url"),
        (["--machine-rank", "1"], "--machine-rank 1"),
        (["--train-json", "a.json"], "--train-json and --train-images go together"),
        (["--train-json", "a.json", "--train-images", "a"], "needs --val-json"),
    ],
)
def test_mistakes_are_named(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_args(argv)
    assert exit_info.value.code == 2
    assert said in capsys.readouterr().err
