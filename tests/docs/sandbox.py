"""Folders that look like a user's checkout, one for each page, and what the pages' blocks do there.

A page is run as a reader would: from top to bottom, in one folder. A test wants one block; it runs
those before it too, unless a test has done so. Results are kept in the folder, which all workers
share.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from filelock import FileLock
from PIL import Image

from d2_plugins.data.datasets.shapes import ShapesRecipe, ensure_shapes, shapes_datasets
from tests.docs.markdown import Block
from tests.docs.programs import CLIENT, LOG_VARIABLE, PROGRAMS, SOCKET_VARIABLE
from tests.docs.rules import PRESUPPOSED
from tests.support.helpers import REPO
from tests.support.toy import write_toy_coco

# Not the reader's: what is ignored by git, and what the sandbox has of its own.
_NOT_COPIED = (".*", "__pycache__", "output", "datasets", "build", "dist", "*.egg-info")

_SECONDS = 400  # for a block


@dataclass(frozen=True)
class Result:
    """What a block did.

    Attributes:
        status: its exit status.
        output: what it printed.
        commands: the programs it called, as :func:`tests.docs.programs.run` logs them.
    """

    status: int
    output: str
    commands: list[dict[str, object]]

    @property
    def ok(self) -> bool:
        """False also where a command failed whose status the shell does not pass on."""
        return self.status == 0 and not any(command["status"] for command in self.commands)


class Sandbox:
    """The folder of one page."""

    def __init__(self, folder: Path, address: str) -> None:
        """Args:
        folder: made on first use.
        address: of the server of programs.
        """
        self.folder = folder
        self._address = address
        self._results = folder.with_name(f"{folder.name}.results")

    def result(self, block: Block, page: Sequence[Block]) -> Result:
        """What ``block`` does after those before it.

        Args:
            block: of the page.
            page: all blocks of the page that are run, in their order.
        """
        with FileLock(f"{self.folder}.lock"):
            if not self.folder.exists():
                self._prepare("".join(each.text for each in page))
            for each in page[: page.index(block) + 1]:
                file = self._results / str(each.line)
                if not file.exists():
                    file.write_text(json.dumps(asdict(self._run(each.language, each.text))))
        return Result(**json.loads(file.read_text()))

    def _prepare(self, text: str) -> None:
        self._results.mkdir(parents=True, exist_ok=True)
        write_checkout(self.folder)
        for path, command in PRESUPPOSED.items():
            if path in text:
                result = self._run("bash", command)
                assert result.ok, result.output

    def _run(self, language: str, text: str) -> Result:
        log = self._results / "log"
        log.unlink(missing_ok=True)
        program = ["bash", "-e"] if language == "bash" else [str(self.folder / "bin" / "python")]
        env = os.environ | {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPO),
            SOCKET_VARIABLE: self._address,
            LOG_VARIABLE: str(log),
        }
        for variable in ("DETECTRON2_DATASETS", "VIRTUAL_ENV", "MAKEFLAGS"):
            env.pop(variable, None)
        try:
            done = subprocess.run(
                [*program, "-c", text],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            return Result(124, f"{error.output}\nnot done after {_SECONDS} s", [])
        lines = log.read_text().splitlines() if log.exists() else []
        return Result(done.returncode, done.stdout, [json.loads(line) for line in lines])


def write_checkout(folder: Path) -> None:
    """A copy of the checkout, with small data where the whole would be, and files to work on."""
    shutil.copytree(REPO, folder, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    for program in (*(f"bin/{name}" for name in PROGRAMS), ".venv/bin/python", "dev/install.sh"):
        path = folder / program
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CLIENT)
        path.chmod(0o755)
    shapes = shapes_datasets(folder / "datasets")[0].json_file.parent
    ensure_shapes(shapes, ShapesRecipe(num_images=(("train", 8), ("val", 4))))
    _write_coco(folder / "datasets" / "coco")
    for split in ("train", "val"):
        json_file, images = write_toy_coco(folder / f"{split}_set", num_images=2)
        json_file.rename(folder / f"{split}.json")
        images.rename(folder / split)
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg")


def _write_coco(root: Path) -> None:
    """COCO's files with its 80 classes and a few images."""
    names = [c["name"] for c in COCO_CATEGORIES if c["isthing"]]
    ids = [c["id"] for c in COCO_CATEGORIES if c["isthing"]]
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        json_file, images = write_toy_coco(root / f"{split}_set", num_images=4)
        content = json.loads(json_file.read_text())
        content["categories"] = [
            {"id": i, "name": name} for i, name in zip(ids, names, strict=True)
        ]
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        images.rename(root / split)


class Programs:
    """The server of programs, as long as the context lasts."""

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: for its socket; the path has to be short.
        """
        self.address = str(folder / "programs")

    def __enter__(self) -> "Programs":
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.docs.programs", self.address],
            cwd=REPO,
            env=os.environ | {"PYTHONPATH": str(REPO), "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # ends its standard input, and so itself
        with contextlib.suppress(ProcessLookupError):  # and what a block has left running
            os.killpg(self._process.pid, signal.SIGKILL)
