"""Detection in the frames of a video or camera for ``d2-plugins predict``."""

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
from detectron2.utils.video_visualizer import VideoVisualizer

from ..errors import UsageError
from .detections import Detections
from .detector import Detector
from .tracking import Tracker
from .video import VideoFile, VideoSource
from .window import Window

__all__ = ["detect_video"]


def detect_video(
    source: VideoSource,
    detector: Detector,
    video: VideoFile | None = None,
    window: Window | None = None,
    tracker: Tracker | None = None,
) -> list[dict[str, Any]]:
    """Detect objects in every frame; with a camera, until Ctrl-C.

    Args:
        source: the video or camera.
        detector: the detector.
        video: file for the drawn frames, in which objects keep their colours.
        window: window to show the drawn frames in.
        tracker: gives the objects ids.

    Returns:
        The detections, see :meth:`Detections.to_coco`; the number of the frame is the image id.

    Raises:
        UsageError: there is no frame that can be decoded.
    """
    rows: list[dict[str, Any]] = []
    visualizer = VideoVisualizer(detector.metadata)
    num_frames = 0
    with contextlib.suppress(*[KeyboardInterrupt] * source.is_live):
        for frame in source.frames():
            found = replace(detector.predict(frame), file_name=source.name)
            if tracker is not None:
                found = tracker.update(found)
            rows += found.to_coco(num_frames)
            num_frames += 1
            if video is None and window is None:
                continue
            picture = _draw(found, visualizer)
            if video is not None:
                video.write(picture)
            if window is not None and not window.show(picture, 1):
                break
    if not num_frames:
        raise UsageError(f"'{source.name}' has no frame that can be decoded")
    print(f"{source.name}: {len(rows)} objects in {num_frames} frames")
    return rows


def _draw(found: Detections, visualizer: VideoVisualizer) -> np.ndarray:
    """Return the drawn frame, (H, W, 3) uint8, RGB."""
    if found.track_ids is not None:
        return np.asarray(found.draw())
    pixels = np.ascontiguousarray(found.image[:, :, ::-1])
    return visualizer.draw_instance_predictions(pixels, found.instances).get_image()
