"""tools/train_net.py as a user runs it: data-parallel, killed, resumed, evaluated."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.helpers import REPO
from tests.support.toy import TOY_OPTS, write_toy_coco


def command(tmp_path: Path, *options: str, opts: tuple[str, ...] = ()) -> list[str]:
    json_file, images = write_toy_coco(tmp_path / "data")
    own_data = [
        *("--train-json", str(json_file), "--train-images", str(images)),
        *("--val-json", str(json_file), "--val-images", str(images)),
    ]
    tool = [sys.executable, str(REPO / "tools" / "train_net.py")]
    config = ["--config-file", str(REPO / "configs" / "Demo" / "Base-shapes.yaml")]
    output = ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu"]
    return [*tool, *config, *own_data, *options, *TOY_OPTS, *output, *opts]


def start(argv: list[str]) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


def wait_for(process: subprocess.Popen[str], pattern: str) -> list[str]:
    """Read output up to a line that matches."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"'{pattern}' was never printed:\n{''.join(lines)}")


def children(pid: int) -> list[int]:
    """Processes below ``pid``, at any depth."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True)
    parents = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        below = [child for child, its_parent in parents if its_parent == parent]
        found += below
        queue += below
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_two_processes_train_and_resume_and_one_evaluates(tmp_path: Path) -> None:
    opts = ("SOLVER.MAX_ITER", "3", "SOLVER.CHECKPOINT_PERIOD", "1")
    trained = start(command(tmp_path, "--num-gpus", "2", opts=opts))
    output, _ = trained.communicate(timeout=200)
    assert trained.returncode == 0, output
    assert "world size: 2" in output.lower()
    more = ("SOLVER.MAX_ITER", "5")
    resumed = start(command(tmp_path, "--num-gpus", "2", "--resume", opts=more))
    output, _ = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, output
    assert "Resuming from iteration 3 of 5" in output
    final = str(tmp_path / "out" / "model_final.pth")
    evaluated = start(command(tmp_path, "--eval-only", opts=("MODEL.WEIGHTS", final)))
    output, _ = evaluated.communicate(timeout=200)
    assert evaluated.returncode == 0, output
    assert "AP50" in output


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_worker_ends_the_run_with_its_cause_and_no_orphans(tmp_path: Path) -> None:
    opts = ("SOLVER.MAX_ITER", "100000", "DATALOADER.NUM_WORKERS", "1")
    process = start(command(tmp_path, "--num-gpus", "2", opts=opts))
    wait_for(process, r"iter: \d+")
    below = children(process.pid)
    workers = [pid for pid in below if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode != 0
    assert re.search(r"error: worker \d of 2 .* was killed by SIGKILL", output), output
    deadline = time.monotonic() + 30
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in below if alive(pid)]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_loses_at_most_a_checkpoint_period(tmp_path: Path) -> None:
    period = 2
    opts = ("SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", str(period))
    process = start(command(tmp_path, opts=opts))
    # The progress line comes every 20 iterations; the kill lands somewhere behind it.
    reached = 20 * 2 - 1
    wait_for(process, rf"iter: {reached}\b")
    time.sleep(0.37)
    process.kill()
    process.wait()
    last = tmp_path / "out" / (tmp_path / "out" / "last_checkpoint").read_text().strip()
    iteration = torch.load(last, weights_only=True)["iteration"]
    assert iteration >= reached - period
    resumed = start(command(tmp_path, "--resume", opts=("SOLVER.MAX_ITER", str(iteration + 3))))
    output, _ = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, output
    assert f"Resuming from iteration {iteration + 1} of" in output


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    argv = [*command(tmp_path), "SOLVER.BASE_LRR", "1"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2
    assert "SOLVER.BASE_LR" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_mistake_that_only_the_workers_see_is_one_line_and_status_2(tmp_path: Path) -> None:
    argv = command(tmp_path, "--num-gpus", "2", opts=("MODEL.ATTENTION.NAME", "ecca"))
    result = subprocess.run(argv, capture_output=True, text=True, timeout=200)
    assert result.returncode == 2, result.stderr
    assert re.search("^error: .*ecca", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr
