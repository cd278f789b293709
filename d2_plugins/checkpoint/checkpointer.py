"""detectron2's checkpointer with atomic saving, verified reading and a report of what is loaded."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..config_conflicts import check_combinations
from ..errors import UsageError, model_errors, usage_errors
from ..files import atomic_open
from .conversion import convert_darknet, convert_names, find_bottom_up
from .load_report import LoadReport
from .plain_state import to_plain
from .reading import read_checkpoint
from .sources import Source, find_source, rename_by_position

__all__ = ["PluginCheckpointer", "load_model"]


class PluginCheckpointer(DetectionCheckpointer):
    """DetectionCheckpointer with atomic saving, weights by name and a checked result.

    Saving: a checkpoint appears under its name, and is named in ``last_checkpoint``, only when it
    is complete on the disk.

    Loading reads all that detectron2 reads (with ``?matching_heuristics=True``), and all that
    :func:`~d2_plugins.checkpoint.find_source` and
    :func:`~d2_plugins.checkpoint.conversion.convert_names` support. It runs no code from a file,
    refuses damaged files (see :mod:`~d2_plugins.checkpoint.reading`), logs one summary, and raises
    unless the file filled

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
        constants: Mapping[str, Any] | None = None,
        **checkpointables: Any,
    ) -> None:
        """Initialize.

        Args:
            model: with or without DistributedDataParallel around it.
            save_dir: folder of the checkpoints.
            allow_missing: ``MODEL.WEIGHTS_ALLOW_MISSING``, shell patterns of entries of the model
                that a file does not have to fill.
            save_to_disk: None saves in the main process only.
            constants: plain values to write into each checkpoint; loading does not need them.
            checkpointables: objects with ``state_dict()`` and ``load_state_dict()``.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.logger = logging.getLogger(__name__)
        self._allow_missing = tuple(allow_missing)
        self._constants = dict(constants or {})
        self._name = ""
        self._source = Source("")
        self._everything = False
        self._resuming = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``{name}.pth`` and name it the last checkpoint.

        Args:
            name: file name without its extension.
            kwargs: further values to save: plain containers, numbers, strings and tensors.

        Raises:
            TypeError: a value could not be read again.
            OSError: the file cannot be written, e.g. on a full disk. The previous checkpoint is
                kept.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data = self._constants | states | kwargs
        data = to_plain(data, "the checkpoint") | {"model": self.model.state_dict()}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        self._remove_left_overs()
        try:
            with atomic_open(path, "wb") as file:
                torch.save(data, file)
        except (OSError, RuntimeError) as error:  # torch may hide e.g. a full disk behind its own
            cause = _file_error(error)
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        self.tag_last_checkpoint(path.name)

    def _remove_left_overs(self) -> None:
        """Delete the unfinished files of saves that were killed.

        Only the main process of one run writes to the folder, so none of them is in use.
        """
        for pattern in (".*.pth.*.part", ".last_checkpoint.*.part"):
            for left_over in Path(self.save_dir).glob(pattern):
                left_over.unlink()

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the checkpoint that a resumed run starts from."""
        with atomic_open(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename)

    def resume_or_load(
        self, path: str, *, resume: bool = True, key: str = "MODEL.WEIGHTS"
    ) -> dict[str, Any]:
        """Load the last checkpoint with its training state, or else weights alone.

        Args:
            path: see :meth:`load`; weights to start from if there is no checkpoint.
            resume: load the checkpoint that ``last_checkpoint`` names, if there is that file.
            key: config key of ``path``, for error messages.

        Returns:
            See :meth:`load`.

        Raises:
            UsageError: the file is missing, damaged or does not fill the model, or a checkpoint to
                resume from does not hold the training state. The message names the cause.
        """
        self._resuming = resume and self.has_checkpoint()
        try:
            if not self._resuming:
                with usage_errors(key):
                    return self.load(path, checkpointables=[])
            with usage_errors("--resume"):
                return self._resume()
        finally:
            self._resuming = False

    def _resume(self) -> dict[str, Any]:
        tag = os.path.join(self.save_dir, "last_checkpoint")
        path = self.get_checkpoint_file()
        if not os.path.isfile(path):
            raise UsageError(
                f"'{tag}' names '{os.path.basename(path)}', but there is no file '{path}'. Write "
                "the name of another checkpoint into it, or leave --resume out."
            )
        try:
            return self.load(path)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise UsageError(
                f"the training state in '{path}' does not fit this run: "
                f"{type(error).__name__}: {error}"
            ) from error

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint or published weights.

        Args:
            path: a file, a URL, ``detectron2://...``, ``timm://...`` or ``torchvision://...``; ""
                loads nothing.
            checkpointables: names of the objects besides the model to restore; None for all.

        Returns:
            The content of the file without the model and these objects.

        Raises:
            IncompleteWeightsError: the file does not fill the required entries, see the class.
            UnsafeCheckpointError: reading the file could run code.
            ValueError: the file is damaged, there are no such weights, or they need another config.
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
            self._parsed_url_during_load = None  # otherwise a failed load would prevent the next

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith((".pkl", ".pyth")):
            return read_checkpoint(filename)
        return super()._load_file(filename)  # reads by _torch_load, and applies the query

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if self._resuming and "trainer" in self.checkpointables and "trainer" not in checkpoint:
            raise UsageError(
                f"'{self._name}' holds weights without training state (no 'trainer'), so its run "
                "cannot be continued. To start a new run from these weights, leave --resume out "
                "and set MODEL.WEIGHTS to the file."
            )
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
        # Parameters only: torch fills a missing counter of BatchNorm.
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
    """Return the missing entries except those whose tensor was filled under another name."""
    absent = set(missing)
    filled = {id(tensor) for name, tensor in state.items() if name not in absent}
    return [name for name in missing if id(state[name]) not in filled]


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config in eval mode and load ``MODEL.WEIGHTS``.

    Raises:
        UsageError: the weights do not exist, do not fit the model or are not finite.
    """
    return load_with_rest(cfg)[0]


def load_with_rest(cfg: CfgNode) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model of :func:`load_model` and what else the file of the weights holds.

    Raises:
        UsageError: the weights do not exist, do not fit the model or are not finite.
    """
    check_combinations(cfg)
    with model_errors():
        model = build_model(cfg).eval()
    checkpointer = PluginCheckpointer(model, allow_missing=cfg.MODEL.WEIGHTS_ALLOW_MISSING)
    with usage_errors("MODEL.WEIGHTS"):
        rest = checkpointer.load(cfg.MODEL.WEIGHTS)
    bad = [k for k, v in model.state_dict().items() if v.is_floating_point() and not _finite(v)]
    if bad:
        raise UsageError(
            f"MODEL.WEIGHTS: '{cfg.MODEL.WEIGHTS}' has NaN or infinite values in {len(bad)} "
            f"entries, among them {', '.join(bad[:3])}"
        )
    return model, rest


def _finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _file_error(error: BaseException | None) -> OSError | None:
    """Return the first OSError among an exception and those that it hides."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
