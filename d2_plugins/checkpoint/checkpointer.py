"""detectron2's checkpointer, which survives being killed and says what it loaded."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..errors import usage_errors
from ..files import atomic_open
from .conversion import convert_darknet, convert_names, find_bottom_up
from .load_report import LoadReport
from .packaged_weights import rename_by_position
from .plain_state import to_plain
from .reading import read_checkpoint
from .sources import Source, find_source

__all__ = ["PluginCheckpointer", "load_model"]


class PluginCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer with atomic saving, weights by name and a checked result.

    Saving: a checkpoint appears under its name, and is named in ``last_checkpoint``, only when it
    is whole on the disk.

    Loading understands, beside all that detectron2 does (with ``?matching_heuristics=True``), what
    :func:`~d2_plugins.checkpoint.find_source` and
    :func:`~d2_plugins.checkpoint.conversion.convert_names` know; it runs no code from a file, logs
    one summary, and raises unless the file filled

    - everything, where training state is restored as well (a resumed run), or where the model is in
      eval mode;
    - the backbone (without its pyramid, and without attention if the file has none) otherwise:
      these are weights to start a training from, and the summary lists what else is new.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        allow_missing: Sequence[str] = (),
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """Take a model and what else is to be saved.

        Args:
            model: with or without DistributedDataParallel around it.
            save_dir: folder of the checkpoints.
            allow_missing: ``MODEL.WEIGHTS_ALLOW_MISSING``, shell patterns of entries of the model
                that a file need not fill.
            save_to_disk: None saves in the main process only.
            checkpointables: objects with ``state_dict()`` and ``load_state_dict()``.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.logger = logging.getLogger(__name__)
        self._allow_missing = tuple(allow_missing)
        self._name = ""
        self._source = Source("")
        self._everything = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``{name}.pth`` and name it the last checkpoint.

        Args:
            name: of the file, without its extension.
            kwargs: more to save: plain containers, numbers, strings and tensors.

        Raises:
            TypeError: something to be saved could not be read again.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {key: obj.state_dict() for key, obj in self.checkpointables.items()} | kwargs
        data = to_plain(data, "the checkpoint") | {"model": self.model.state_dict()}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        for left_over in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed
            left_over.unlink()
        with atomic_open(path, "wb") as file:
            torch.save(data, file)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that a resumed run starts from."""
        with atomic_open(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint or published weights.

        Args:
            path: a file, a URL, ``detectron2://...``, ``timm://...`` or ``torchvision://...``; ""
                loads nothing.
            checkpointables: names of the objects beside the model to restore; None is all.

        Returns:
            What the file holds beside the model and these objects.

        Raises:
            IncompleteWeightsError: the file does not fill what it has to, see the class.
            UnsafeCheckpointError: reading the file could run code.
            ValueError: there are no such weights, or they want another config.
            OSError: the weights can be neither found nor downloaded.
        """
        self._source = find_source(path)
        self._name = path
        self._everything = bool(
            self.checkpointables if checkpointables is None else checkpointables
        )
        try:
            return super().load(self._source.path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # else a failed load would bar the next

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):
            return read_checkpoint(filename)
        return super()._load_file(filename)  # reads by _torch_load, and heeds the query

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if "darknet" in checkpoint:
            checkpoint["model"] = convert_darknet(checkpoint.pop("darknet"), self.model)
        elif not checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            if self._source.packaged_arch is not None:
                checkpoint["model"] = rename_by_position(
                    checkpoint["model"], self._source.packaged_arch
                )
            checkpoint["model"] = convert_names(checkpoint["model"], self.model)
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        state = self.model.state_dict(keep_vars=True)
        shapes = incompatible.incorrect_shapes
        mismatched = {name for name, _, _ in shapes}
        missing = [name for name in incompatible.missing_keys if name not in mismatched]
        report = LoadReport(
            source=self._name,
            total=len(state),
            missing=_without_aliases(missing, state),
            unexpected=incompatible.unexpected_keys,
            shapes=shapes,
        )
        self._check(report)
        self.logger.log(logging.WARNING if shapes else logging.INFO, "%s", report)
        self._check_pixels()

    def _check(self, report: LoadReport) -> None:
        if self._everything or not self.model.training:
            report.require(lambda name: True, self._allow_missing, "the model")
            return
        prefix, _ = find_bottom_up(self.model)
        # Buffers aside: torch fills a BatchNorm's counter if it must.
        attention = {name for name, _ in self.model.named_parameters() if _is_attention(name)}
        all_new = attention <= set(report.missing)
        report.require(
            lambda name: name.startswith(prefix) and not (all_new and _is_attention(name)),
            self._allow_missing,
            "the backbone",
        )

    def _check_pixels(self) -> None:
        pixels = self._source.pixels
        mean = getattr(self.model, "pixel_mean", None)
        if pixels is None or mean is None:
            return
        image_format = getattr(self.model, "input_format", None)
        std = self.model.pixel_std
        problem = pixels.mismatch(mean.flatten().tolist(), std.flatten().tolist(), image_format)
        if problem:
            self.logger.warning(problem)


def _is_attention(name: str) -> bool:
    return "attention" in name.split(".")


def _without_aliases(missing: Sequence[str], state: dict[str, torch.Tensor]) -> list[str]:
    """The missing entries, without other names of tensors that were filled."""
    absent = set(missing)
    filled = {id(tensor) for name, tensor in state.items() if name not in absent}
    return [name for name in missing if id(state[name]) not in filled]


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config in eval mode and load ``MODEL.WEIGHTS``.

    Raises:
        UsageError: the weights do not exist or do not fit the model.
    """
    return load_with_rest(cfg)[0]


def load_with_rest(cfg: CfgNode) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model of :func:`load_model` and what else the file of the weights holds.

    Raises:
        UsageError: the weights do not exist or do not fit the model.
    """
    model = build_model(cfg).eval()
    checkpointer = PluginCheckpointer(model, allow_missing=cfg.MODEL.WEIGHTS_ALLOW_MISSING)
    with usage_errors("MODEL.WEIGHTS"):
        rest = checkpointer.load(cfg.MODEL.WEIGHTS)
    return model, rest
