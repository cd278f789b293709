"""A trained detector to use on photos and videos.

>>> from d2_plugins import Detector
>>> detections = Detector("output/own").predict("photo.jpg")
>>> detections.draw().save("drawn.jpg")
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from PIL import Image

from ..checkpoint.checkpointer import load_with_rest
from ..checkpoint.hub_files import HUB_PREFIX, download_run
from ..checkpoint.run_folder import find_weights
from ..data.classes import Classes, find_classes
from ..data.images import read_photo
from ..errors import UsageError
from ..model_zoo import read_config
from ..modeling import inference_form
from .detections import Detections
from .video import VideoSource

__all__ = ["Detector", "run_config", "set_confidence_threshold"]

logger = logging.getLogger(__name__)

# A file, pixels (H, W, 3) uint8 in BGR order as OpenCV reads them, or an image of Pillow.
Photo: TypeAlias = str | Path | np.ndarray | Image.Image


class Detector(DefaultPredictor):
    """A trained detector, with every weight checked and the names of its classes.

    Calling it with a BGR array gives what detectron2's DefaultPredictor gives, up to the rounding
    of the model's inference form (``TEST.INFERENCE_FORM``).

    Attributes:
        cfg: config of the model.
        metadata: detectron2's Metadata with the names and category ids of the classes; empty if
            they are unknown.
    """

    def __init__(
        self,
        source: str | Path | CfgNode,
        *,
        confidence: float = 0.5,
        device: str | None = None,
        classes: Classes | None = None,
    ) -> None:
        """Build the model and load its weights.

        The classes are those of the checkpoint, of ``classes.json`` next to it, or of the config's
        datasets.

        Args:
            source: output folder of a run, a checkpoint next to its ``config.yaml``, a repository
                of the Hugging Face Hub (``"hf://OWNER/NAME"``, see ``d2-plugins push``), or a
                config with ``MODEL.WEIGHTS``. Of a folder, the weights are ``model_best.pth``,
                or else ``model_final.pth``, or else the last checkpoint.
            confidence: lowest score of the objects to return, in 0..1.
            device: "cpu" or "cuda"; by default a GPU is used where there is one, unless a config
                says "cpu".
            classes: classes of the model, if the run does not know them.

        Raises:
            UsageError: there are no weights, or they do not fill the model.
        """
        cfg = source.clone() if isinstance(source, CfgNode) else run_config(source)
        cfg.defrost()
        if device or not torch.cuda.is_available():
            cfg.MODEL.DEVICE = device or "cpu"
        set_confidence_threshold(cfg, confidence)
        # DefaultPredictor.__init__ is not called: its checkpointer only warns of missing weights.
        if not cfg.MODEL.WEIGHTS:
            raise UsageError(
                "MODEL.WEIGHTS is empty: name a trained model, MODEL.WEIGHTS model_final.pth"
            )
        self.input_format = cfg.INPUT.FORMAT
        if self.input_format not in ("BGR", "RGB"):
            raise UsageError(f"INPUT.FORMAT is '{self.input_format}'; allowed: BGR, RGB")
        self.cfg = cfg
        self.aug = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        model, checkpoint = load_with_rest(cfg)
        self.model = inference_form(model) if cfg.TEST.INFERENCE_FORM else model
        found = classes or find_classes(cfg, checkpoint)
        if found is None:
            logger.warning(
                "The classes of this model are unknown: they are shown, and written in COCO's "
                "format, by their index from 0"
            )
        self.metadata = found.metadata() if found else Metadata()

    @overload  # a str is a Sequence too
    def predict(  # type: ignore[overload-overlap]
        self, photos: Photo, *, batch_size: int = 8
    ) -> Detections: ...

    @overload
    def predict(self, photos: Sequence[Photo], *, batch_size: int = 8) -> list[Detections]: ...

    def predict(
        self, photos: Photo | Sequence[Photo], *, batch_size: int = 8
    ) -> Detections | list[Detections]:
        """Detect objects in one photo or in several.

        Args:
            photos: a file, pixels (H, W, 3) uint8 in BGR order as OpenCV reads them, an image of
                Pillow, or a sequence of these.
            batch_size: number of photos of a sequence that go through the model together.

        Returns:
            The objects of the photo; a list of such for a sequence.

        Raises:
            OSError: a file cannot be read.
            UsageError: the model does not detect objects, e.g. it only makes proposals.
        """
        if isinstance(photos, str | Path | np.ndarray | Image.Image):
            return self._detect([photos])[0]
        batches = (photos[i : i + batch_size] for i in range(0, len(photos), batch_size))
        return [detections for batch in batches for detections in self._detect(batch)]

    def predict_video(self, source: str | Path | int) -> Iterator[Detections]:
        """Detect objects in the frames of a video, one after the other.

        Args:
            source: a video file, or the number of a camera.

        Raises:
            UsageError: the video cannot be opened.
        """
        video = VideoSource(source if isinstance(source, int) else str(source))
        try:
            for frame in video.frames():
                yield self.predict(frame)
        finally:
            video.close()

    @torch.no_grad()
    def _detect(self, photos: Sequence[Photo]) -> list[Detections]:
        images = [_pixels(photo) for photo in photos]
        outputs = self.model([self._input(image) for image in images])
        if outputs and "instances" not in outputs[0]:
            raise UsageError(
                f"MODEL.META_ARCHITECTURE '{self.cfg.MODEL.META_ARCHITECTURE}' gives "
                f"{', '.join(outputs[0])}; only detected objects can be shown"
            )
        names = [str(photo) if isinstance(photo, str | Path) else "" for photo in photos]
        return [
            Detections(image, output["instances"].to("cpu"), self.metadata, name)
            for image, output, name in zip(images, outputs, names, strict=True)
        ]

    def _input(self, image: np.ndarray) -> dict[str, Any]:
        """Return the input of the model for BGR pixels, as DefaultPredictor makes it."""
        height, width = image.shape[:2]
        pixels = image[:, :, ::-1] if self.input_format == "RGB" else image
        pixels = self.aug.get_transform(pixels).apply_image(pixels)
        tensor = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1))
        return {"image": tensor.to(self.cfg.MODEL.DEVICE), "height": height, "width": width}


def _pixels(photo: Photo) -> np.ndarray:
    """Return (H, W, 3) uint8, BGR."""
    if isinstance(photo, np.ndarray):
        return photo
    if isinstance(photo, Image.Image):
        return np.asarray(photo.convert("RGB"))[:, :, ::-1]
    return read_photo(photo, "BGR")


def run_config(source: str | Path) -> CfgNode:
    """Return the config of a run or of a checkpoint, with ``MODEL.WEIGHTS`` set.

    Args:
        source: output folder of a run; a checkpoint next to its ``config.yaml``; a repository
            ``hf://OWNER/NAME``; or a config file or a name of the model zoo. A GPU is used where
            there is one.

    Raises:
        UsageError: there is no such file or folder, or no config or weights in it.
    """
    path = download_run(str(source)) if str(source).startswith(HUB_PREFIX) else Path(source)
    if not path.exists() or path.suffix in (".yaml", ".yml"):
        return read_config(str(source))
    folder = path if path.is_dir() else path.parent
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"{folder} has no config.yaml; give the output folder of a run")
    cfg = read_config(str(folder / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(_weights_in(folder) if path.is_dir() else path)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


def _weights_in(folder: Path) -> Path:
    weights = find_weights(folder)
    if weights is None:
        raise UsageError(
            f"{folder} has no weights: none of model_best.pth, model_final.pth and the checkpoint "
            "that last_checkpoint names"
        )
    return weights


def set_confidence_threshold(cfg: CfgNode, threshold: float) -> None:
    """Let detectors of ``cfg`` give only objects whose score is above ``threshold``, in 0..1."""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = threshold
