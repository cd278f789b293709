"""Videos of tools/demo.py: frames read, detected in, drawn and written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from detectron2.utils.video_visualizer import VideoVisualizer
from tqdm import tqdm

from ..errors import UsageError
from .detector import Detector
from .window import Window

__all__ = ["VideoFile", "VideoSource", "detect_video", "video_path"]

_DEFAULT_FPS = 30.0


class VideoSource:
    """A video file or a camera, open."""

    def __init__(self, source: str | int) -> None:
        """Open it.

        Args:
            source: a file, or the number of a camera.

        Raises:
            UsageError: it cannot be opened.
        """
        self.is_live = isinstance(source, int)
        self.name = "webcam" if self.is_live else str(source)
        if not self.is_live and not Path(self.name).is_file():
            raise UsageError(f"--video-input: there is no file '{source}'")
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            if self.is_live:
                raise UsageError(f"--webcam: camera {source} cannot be opened")
            raise UsageError(f"--video-input: '{source}' cannot be opened as a video")

    @property
    def fps(self) -> float:
        """Frames per second; 30 where a camera or file does not say."""
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        return rate if 0 < rate < float("inf") else _DEFAULT_FPS

    def frames(self) -> Iterator[np.ndarray]:
        """All frames, (H, W, 3) uint8 BGR, until the end or the first that cannot be decoded."""
        total = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        with tqdm(total=max(0, total) or None, unit="frame", disable=None) as progress:
            while True:
                there_is_one, frame = self._capture.read()
                if not there_is_one:
                    return
                yield frame
                progress.update()

    def close(self) -> None:
        """Give the file or camera back."""
        self._capture.release()


class VideoFile:
    """An MP4 that appears under its name when the block ends without an error, if it has frames.

    OpenCV's writer cuts frames of an odd width or height by one pixel.
    """

    def __init__(self, path: Path, fps: float) -> None:
        """Args:
        path: ends in ".mp4".
        fps: frames per second.
        """
        self.path = path
        self.num_frames = 0
        self._fps = fps
        self._aside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._writer: Any = None

    def write(self, picture: np.ndarray) -> None:
        """Append (H, W, 3) uint8 RGB; all pictures have the size of the first.

        Raises:
            UsageError: the file cannot be written.
        """
        if self._writer is None:
            height, width = picture.shape[:2]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._aside), code, self._fps, (width, height))
            if not self._writer.isOpened():
                raise UsageError(f"{self.path} cannot be written as an MP4 video by OpenCV")
        self._writer.write(picture[:, :, ::-1])
        self.num_frames += 1

    def __enter__(self) -> "VideoFile":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.release()
        if error is None and self.num_frames:
            os.replace(self._aside, self.path)
        else:
            self._aside.unlink(missing_ok=True)


def video_path(source: VideoSource, folder: Path) -> Path:
    """Where the drawn video goes.

    Raises:
        UsageError: it would replace the video.
    """
    path = folder / f"{Path(source.name).stem}.mp4"
    if path.resolve() == Path(source.name).resolve():
        raise UsageError(f"--output: the drawn video would replace {source.name}")
    return path


def detect_video(
    source: VideoSource,
    detector: Detector,
    video: VideoFile | None = None,
    window: Window | None = None,
) -> list[dict[str, Any]]:
    """Detect objects in every frame; of a camera, until Ctrl-C.

    Args:
        source: the frames.
        detector: detects.
        video: takes the drawn frames, in which objects keep their colours.
        window: to show them in.

    Returns:
        The detections, see :meth:`Detector.coco_rows`; the frame's number is the image id.

    Raises:
        UsageError: there is no frame.
    """
    rows: list[dict[str, Any]] = []
    draw = VideoVisualizer(detector.metadata).draw_instance_predictions
    num_frames = 0
    with contextlib.suppress(*[KeyboardInterrupt] * source.is_live):
        for frame in source.frames():
            instances = detector.detect(frame)
            rows += detector.coco_rows(instances, image_id=num_frames, file_name=source.name)
            num_frames += 1
            if video is None and window is None:
                continue
            picture = draw(np.ascontiguousarray(frame[:, :, ::-1]), instances).get_image()
            if video is not None:
                video.write(picture)
            if window is not None and not window.show(picture, 1):
                break
    if not num_frames:
        raise UsageError(f"'{source.name}' has no frame that can be decoded")
    print(f"{source.name}: {len(rows)} objects in {num_frames} frames")
    return rows
