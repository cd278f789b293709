"""A folder in which the blocks of a page are run, one after the other, as a reader would."""

import json
import multiprocessing
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from d2_plugins.data.datasets.shapes import ShapesRecipe, ensure_shapes, shapes_datasets
from tests.docs import commands
from tests.docs.markdown import Block
from tests.docs.rules import PRESUPPOSED, why_not_run
from tests.support.helpers import REPO
from tests.support.toy import write_toy_coco

_PROGRAMS = ("d2-plugins", "python", "make", "pip", "conda")
_SECONDS = 400  # limit for one command

# The processes are forks of a server that has imported these, so that no command waits for torch.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["torch", "cv2", "timm", "matplotlib.pyplot", "detectron2.engine", "detectron2.evaluation"]
)


class Page:
    """The folder of one page: a small checkout, small datasets and the files of a reader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("configs", "dev", "docs", "tools"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPO / name, folder / name, ignore=ignored)
        shutil.copy(REPO / "Makefile", folder)
        _write_program(folder / "bin" / "d2-plugins")
        _write_data(folder)

    def prepare(self, text: str) -> None:
        """Run the commands whose results the text of the page uses."""
        for path, command in PRESUPPOSED.items():
            if path in text and command not in text:
                self.run(Block("before the page", 0, "bash", command))

    def run(self, block: Block) -> None:
        """Run a block.

        Raises:
            AssertionError: a command of the block fails; the message has its output.
        """
        if block.language == "python":
            self._check(block, self._fork(commands.run_python, block.text))
        elif _has_operators(block.text):
            self._check(block, self._bash(block.text))
        else:
            for line in _lines(block.text):
                self._check(block, self._run_line(line))

    def output(self) -> str:
        """Return the output of the last command."""
        return (self.folder / "log").read_text()

    def _check(self, block: Block, status: int | None) -> None:
        assert status == 0, f"{block} fails with {status}\n{self.output()}"

    def _run_line(self, line: str) -> int | None:
        words = shlex.split(line, comments=True)
        ours = words[0] in _PROGRAMS or words[0].startswith(("tools/", "dev/"))
        if ours or why_not_run(shlex.join(words)):
            return self._fork(commands.run_command, words)
        return self._bash(line)

    def _fork(self, job: Callable[[Any], int | None], argument: object) -> int | None:
        (self.folder / "log").write_text("")
        arguments = (job, argument, self.folder)
        process = _PROCESSES.Process(target=commands.run_in_folder, args=arguments)
        process.start()
        process.join(_SECONDS)
        process.kill()
        process.join()
        return process.exitcode

    def _bash(self, text: str) -> int:
        with (self.folder / "log").open("w") as log:
            return subprocess.run(
                ["bash", "-e", "-c", text],
                cwd=self.folder,
                env=os.environ | commands.environment(self.folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS,
            ).returncode


def _has_operators(text: str) -> bool:
    """Tell whether a bash block is more than a list of commands: pipes, loops, &&, ..."""
    lexer = shlex.shlex(text, punctuation_chars=True)  # not posix: quoted words keep their quotes
    lexer.whitespace_split = True
    return any(token == "for" or not set(token) - set("();<>|&") for token in lexer)


def _lines(text: str) -> Iterator[str]:
    """Yield the commands of a bash block, each with its continuation lines."""
    pending = ""
    for line in text.replace("\\\n", " ").splitlines():
        pending += line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation continues in the next line
            pending += "\n"
            continue
        if words:
            yield pending
        pending = ""


def _write_program(path: Path) -> None:
    """Write d2-plugins for blocks that bash runs."""
    path.parent.mkdir()
    path.write_text('#!/bin/sh\nexec python -m tests.docs.commands d2-plugins "$@"\n')
    path.chmod(0o755)


def _write_data(folder: Path) -> None:
    """Write small datasets under the names of the full ones, own data and an image."""
    shapes = shapes_datasets(folder / "datasets")[0].json_file.parent
    ensure_shapes(shapes, ShapesRecipe(num_images=(("train", 8), ("val", 4))))
    things = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    coco = folder / "datasets" / "coco"
    for split in ("train", "val"):
        content = _write_set(coco / f"{split}2017", coco / "annotations.json")
        (coco / "annotations").mkdir(exist_ok=True)
        (coco / "annotations" / f"instances_{split}2017.json").write_text(
            json.dumps(content | {"categories": things})
        )
        _write_set(folder / split, folder / f"{split}.json")
    _write_yolo(folder / "my_dataset")
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg")


def _write_yolo(folder: Path) -> None:
    """Write a dataset in YOLO's format."""
    images = folder / "images"
    write_toy_coco(folder, num_images=6)[0].unlink()
    (folder / "labels").mkdir()
    for image in images.iterdir():
        (folder / "labels" / image.with_suffix(".txt").name).write_text("0 0.5 0.5 0.3 0.4\n")
    (folder / "data.yaml").write_text("train: images\nnames: [cell]\n")


def _write_set(images: Path, json_file: Path) -> dict[str, Any]:
    """Write a toy dataset to a folder of images and a json; return the content of the json."""
    annotations, folder = write_toy_coco(images.with_name(f"{images.name}_set"), num_images=4)
    folder.rename(images)
    annotations.rename(json_file)
    content: dict[str, Any] = json.loads(json_file.read_text())
    return content
