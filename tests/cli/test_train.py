"""``d2-plugins train`` and tools/train_net.py: results, mistakes, killed and resumed runs."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog

from d2_plugins.cli import predict
from d2_plugins.cli.train import main
from tests.support.helpers import REPO, shared_path
from tests.support.toy import TOY_OPTS, write_toy_coco

CONFIG = ("--config-file", "Demo/Base-shapes.yaml", "--num-gpus", "0")


def train(folder: Path, data: list[Any], *opts: str) -> int:
    pairs = [*TOY_OPTS, *(str(word) for word in data), "SOLVER.MAX_ITER", "2"]
    return main([*CONFIG, *pairs, "OUTPUT_DIR", str(folder), *opts])


def write_flat_yolo(folder: Path, coco: Path, number: int) -> list[str]:
    """Write images of COCO with one text file each; return the class names."""
    content = json.loads((coco / "instances_val2017.json").read_text())
    labels = {category["id"]: k for k, category in enumerate(content["categories"])}
    folder.mkdir()
    for image in content["images"][:number]:
        file = coco / "images" / image["file_name"]
        (folder / file.name).symlink_to(file)
        lines = []
        for a in content["annotations"]:
            if a["image_id"] == image["id"]:
                x, y, w, h = a["bbox"]
                size = image["width"], image["height"]
                box = ((x + w / 2) / size[0], (y + h / 2) / size[1], w / size[0], h / size[1])
                lines.append(" ".join(map(str, (labels[a["category_id"]], *box))))
        (folder / file.name).with_suffix(".txt").write_text("\n".join(lines))
    names = [category["name"] for category in content["categories"]]
    (folder / "classes.txt").write_text("\n".join(names))
    return names


def check_screen_and_log(screen: str, log: str) -> None:
    """The screen has a summary of the start; everything is in the log, once and without colours."""
    start = screen[: screen.index("Starting training from iteration 0")].splitlines()
    assert len(start) < 30
    for pattern in (
        r"config       Demo/Base-shapes\.yaml, MODEL\.CSPNET\.ARCH cspresnext50 .* \.\.\.",
        r"train on     custom_train: 15 images",
        r"evaluate on  custom_val: 5 images",
        r"classes      80: person, bicycle, .* \.\.\.",
        r"model        CSPResNeXt-50, 0\.125 of the width and FPN; RPN; .*0\.\d million parameters",
        r"iterations   0 to 2, 2 images each \(0\.3 times all images\); learning rate 0\.02",
        r"to continue  d2-plugins train --config-file \S+/run/config\.yaml --resume",
    ):
        assert [line for line in start if re.fullmatch(f"  {pattern}", line)], (pattern, start)
    long = (
        "Environment info:",
        "Contents of args.config_file",
        "Running with full config",
        "Model:",
    )
    for text in long:
        assert text not in screen
        assert log.count(f": {text}") == 1
    assert "Training:" in log
    assert "\x1b" not in log


def test_report_is_written_after_training(toy_data: list[Any], tmp_path: Path) -> None:
    assert train(tmp_path / "with", toy_data, "TEST.REPORT", "True") == 0
    report = (tmp_path / "with" / "report.html").read_text()
    assert "2 of 2" in report
    assert "MAX_ITER" in report
    assert train(tmp_path / "without", toy_data) == 0
    assert not (tmp_path / "without" / "report.html").exists()


@pytest.mark.usefixtures("catalogs")
def test_training_without_validation_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file, images = map(str, write_toy_coco(tmp_path, num_images=4))
    data = ["--train-json", json_file, "--train-images", images]
    pairs = [*TOY_OPTS, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "out")]
    evaluated = ["TEST.BEST_METRIC", "bbox/AP", "TEST.EVAL_PERIOD", "1", "TEST.REPORT", "True"]
    assert main([*CONFIG, *data, *pairs, *evaluated]) == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "TEST.BEST_METRIC is" not in log
    assert "Evaluation results" not in log
    assert (tmp_path / "out" / "model_final.pth").exists()
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.usefixtures("catalogs")
def test_a_folder_is_trained_on_and_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 YOLO files of COCO's val2017, without a validation set: trained, evaluated, resumed."""
    names = write_flat_yolo(tmp_path / "data", shared_path("data/coco_small"), 20)
    pairs = [*TOY_OPTS, "MODEL.ROI_HEADS.NUM_CLASSES", "80", "SOLVER.MAX_ITER", "2"]
    run = tmp_path / "run"
    data = ["--data", str(tmp_path / "data")]
    assert main([*CONFIG, *data, *pairs, "OUTPUT_DIR", str(run)]) == 0
    out = capsys.readouterr().out
    assert "data: YOLO text files, 15 training and 5 validation images (it has no" in out
    assert json.loads((run / "classes.json").read_text())["names"] == names
    check_screen_and_log(out, (run / "log.txt").read_text())
    (detect,) = re.findall(r"^  detect +d2-plugins predict (.*)$", out, re.MULTILINE)
    assert predict.main(shlex.split(detect)) == 0
    (picture,) = (run / "detected").iterdir()
    assert picture.name in {path.name for path in (tmp_path / "data").iterdir()}
    again = ["--config-file", str(run / "config.yaml"), "--num-gpus", "0"]
    other = ["OUTPUT_DIR", str(tmp_path / "other"), "MODEL.WEIGHTS", str(run / "model_final.pth")]
    DatasetCatalog.clear()  # as in another process
    assert main([*again, "--eval-only", *other]) == 0
    assert "AP50" in capsys.readouterr().out
    DatasetCatalog.clear()
    assert main([*again, "--resume", "SOLVER.MAX_ITER", "3"]) == 0
    assert "Resuming from iteration 2 of 3" in (run / "log.txt").read_text()
    (run / "data" / "val.json").unlink()
    assert main([*again, "--eval-only", *other]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {run}/data.json says that the data of this run are in {run}")


@pytest.mark.usefixtures("catalogs")
def test_other_formats_are_named_with_the_command_that_converts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.xml").write_text("<annotation></annotation>")
    data = ["--train-json", str(tmp_path / "a.xml"), "--train-images", str(tmp_path)]
    assert main([*CONFIG, *data, "OUTPUT_DIR", str(tmp_path / "out")]) == 2
    (line,) = [s for s in capsys.readouterr().err.splitlines() if s.startswith("error: ")]
    assert f"a.xml is VOC XML: convert it with: d2-plugins prepare convert {tmp_path}" in line


def test_a_report_that_fails_does_not_lose_the_run(toy_data: list[Any], tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    assert train(tmp_path, toy_data, "TEST.REPORT", "True") == 0
    assert "The report could not be written" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "model_final.pth").exists()


@pytest.mark.parametrize("mode", [(), ("--eval-only",)])
def test_weights_that_do_not_fit_are_one_line(
    mode: tuple[str, ...],
    toy_data: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save({"model": {"other.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    for name, said in (("none.pth", "there is no file"), ("other.pth", "entries of the model")):
        words = [str(word) for word in toy_data]
        weights = ["MODEL.WEIGHTS", str(tmp_path / name), "OUTPUT_DIR", str(tmp_path / "out")]
        assert main([*CONFIG, *mode, *TOY_OPTS, *words, *weights]) == 2
        error = capsys.readouterr().err.splitlines()
        assert [line for line in error if line.startswith("error: MODEL.WEIGHTS: ")], error
        assert any(said in line for line in error)


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(
    toy_data: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write, saves = torch.save, []

    def fill_up(data: object, file: Any) -> None:
        saves.append(file)
        if len(saves) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(data, file)

    monkeypatch.setattr(torch, "save", fill_up)
    run = tmp_path / "run"
    assert train(run, toy_data, "SOLVER.CHECKPOINT_PERIOD", "1") == 2
    out, error = capfd.readouterr()
    assert "error: [Errno 28] No space left on device: '" in error.splitlines()[-1]
    assert "Traceback" not in out + error
    assert (run / "last_checkpoint").read_text() == "model_0000000.pth"
    assert [path.name for path in run.glob("*.pth")] == ["model_0000000.pth"]
    assert not list(run.glob(".*.part"))


@pytest.mark.parametrize("mode", [("--resume",), ("--eval-only", "--resume")])
def test_a_missing_or_damaged_checkpoint_to_resume_from_is_named(
    mode: tuple[str, ...],
    toy_data: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    words = [*mode, *TOY_OPTS, *(str(word) for word in toy_data), "OUTPUT_DIR", str(tmp_path)]
    assert main([*CONFIG, *words]) == 2
    assert "error: --resume: '" in (error := capsys.readouterr().err)
    assert "last_checkpoint' names 'model_0000001.pth', but there is no file" in error
    (tmp_path / "model_0000001.pth").write_bytes(b"PK half a checkpoint")
    assert main([*CONFIG, *words]) == 2
    error = capsys.readouterr().err
    assert f"error: --resume: '{tmp_path / 'model_0000001.pth'}' is truncated or damaged" in error


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (("MODEL.ATTENTION.NAME", "ecca"), "ecca"),
        (("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"), "SOLVER.AMP.DTYPE"),
        (("SOLVER.EMA.ENABLED", "True", "SOLVER.EMA.DECAY", "1.5"), "SOLVER.EMA.DECAY"),
    ],
)
def test_values_that_components_refuse_are_one_line(
    pair: tuple[str, ...],
    said: str,
    toy_data: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(tmp_path, toy_data, *pair) == 2
    assert re.search(rf"^error: .*{said}", capsys.readouterr().err, re.MULTILINE)


def test_random_weights_are_not_evaluated_without_a_word(
    toy_data: list[Any], tmp_path: Path
) -> None:
    words = [*TOY_OPTS, *(str(word) for word in toy_data), "OUTPUT_DIR", str(tmp_path)]
    assert main([*CONFIG, "--eval-only", *words]) == 0
    assert "random weights" in (tmp_path / "log.txt").read_text()


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
    assert re.search(r"^  device +CPU, \d+ threads?, 2 processes$", output, re.MULTILINE)
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


@pytest.mark.slow
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
