"""Identities of objects over the frames of a video, by ByteTrack.

ByteTrack (Zhang et al., ECCV 2022, Algorithm 1) is that of the ``trackers`` package.

>>> detector, tracker = Detector("output/own", confidence=LOWEST_SCORE), Tracker(fps=25)
>>> for detections in detector.predict_video("street.mp4"):
...     tracker.update(detections).draw().show()
"""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .detections import Detections

__all__ = ["LOWEST_SCORE", "Tracker"]

# ByteTrack also follows objects through frames in which they are hardly seen; lower scores than
# this are background (its paper, section 4.1).
LOWEST_SCORE = 0.1
# An object that is not detected keeps its id for this time.
_SECONDS_LOST = 1.0
# Overlap of a detection with the predicted box of its object (the paper, section 4.1).
_LEAST_IOU = 0.2
_NO_ID = -1


class Tracker:
    """Numbers the objects of successive frames, so that each keeps its number.

    Objects of different classes are never taken for one another: each class has a tracker of its
    own. The numbers count all classes together, from 1, and are not used twice.
    """

    def __init__(self, confidence: float = 0.5, fps: float = 30.0) -> None:
        """Start without any objects.

        Args:
            confidence: score from which an object is followed. Detections with a lower score only
                continue an object that is already followed; for these, the detector itself has to
                give objects down to a score of ``LOWEST_SCORE``.
            fps: frames per second; an object that is not detected for a second loses its number.

        Raises:
            ImportError: the ``trackers`` package is missing.
        """
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ImportError(
                f"tracking needs {error.name}: pip install 'd2_plugins[track]'", name=error.name
            ) from error
        self._confidence = confidence
        self._trackers: dict[int, Any] = defaultdict(
            lambda: ByteTrackTracker(
                lost_track_buffer=round(30 * _SECONDS_LOST),  # ByteTrackTracker scales it by fps/30
                frame_rate=fps,
                track_activation_threshold=confidence,
                high_conf_det_threshold=confidence,
                minimum_iou_threshold=_LEAST_IOU,
            )
        )
        self._numbers: dict[tuple[int, int], int] = {}

    def update(self, detections: Detections) -> Detections:
        """Return the objects of the next frame, with ``track_ids`` in their instances.

        Objects below the confidence that continue nothing are left out. An object has the id -1,
        which means none, until it is found in a second frame.

        Args:
            detections: all objects of the frame.
        """
        classes = detections.instances.pred_classes.numpy()
        ids = np.full(len(detections), _NO_ID)
        for k in sorted(self._trackers.keys() | set(classes.tolist())):
            (rows,) = np.nonzero(classes == k)
            ids[rows] = self._update_class(k, detections.boxes[rows], detections.scores[rows])
        kept = torch.from_numpy((ids != _NO_ID) | (detections.scores > self._confidence))
        instances = detections.instances[kept]
        instances.track_ids = torch.from_numpy(ids)[kept]
        return replace(detections, instances=instances)

    def _update_class(self, k: int, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the ids of the objects of one class, in their order."""
        import supervision

        # The tracker changes the order of the objects; "row" brings it back.
        rows = np.arange(len(boxes))
        found = supervision.Detections(xyxy=boxes, confidence=scores, data={"row": rows})
        tracked = self._trackers[k].update(found)
        ids = np.full(len(boxes), _NO_ID)
        for row, own in zip(tracked.data.get("row", []), tracked.tracker_id, strict=True):
            if own != _NO_ID:
                ids[row] = self._numbers.setdefault((k, int(own)), len(self._numbers) + 1)
        return ids
