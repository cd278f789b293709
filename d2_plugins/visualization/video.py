"""Video files and cameras, read and written with OpenCV."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ..errors import UsageError

__all__ = ["VideoFile", "VideoSource", "video_path"]

_DEFAULT_FPS = 30.0


class VideoSource:
    """An open video file or camera."""

    def __init__(self, source: str | int) -> None:
        """Open a video file or a camera.

        Args:
            source: path of the file, or number of the camera.

        Raises:
            UsageError: the file or camera cannot be opened.
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
        """Frames per second; 30 if the camera or file does not tell."""
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        return rate if 0 < rate < float("inf") else _DEFAULT_FPS

    def frames(self) -> Iterator[np.ndarray]:
        """Yield the frames, (H, W, 3) uint8 BGR, up to the first that cannot be decoded."""
        total = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        with tqdm(total=max(0, total) or None, unit="frame", disable=None) as progress:
            while True:
                there_is_one, frame = self._capture.read()
                if not there_is_one:
                    return
                yield frame
                progress.update()

    def close(self) -> None:
        """Release the file or camera."""
        self._capture.release()


class VideoFile:
    """An MP4 that appears under its name when the block ends without an error, if it has frames.

    OpenCV's writer cuts frames of an odd width or height by one pixel.
    """

    def __init__(self, path: Path, fps: float) -> None:
        """Prepare the file; it is created with the first picture.

        Args:
            path: path that ends in ".mp4".
            fps: frames per second.
        """
        self.path = path
        self.num_frames = 0
        self._fps = fps
        self._aside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._writer: Any = None

    def write(self, picture: np.ndarray) -> None:
        """Append a picture (H, W, 3), uint8, RGB; all must have the size of the first.

        Raises:
            UsageError: OpenCV cannot write the file.
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
    """Return the path of the drawn video.

    Raises:
        UsageError: it would replace the video itself.
    """
    path = folder / f"{Path(source.name).stem}.mp4"
    if path.resolve() == Path(source.name).resolve():
        raise UsageError(f"--output: the drawn video would replace {source.name}")
    return path
