"""A window on the screen for ``d2-plugins predict --show``."""

import os
import sys

import cv2
import numpy as np

from ..errors import UsageError

__all__ = ["Window"]

_ESCAPE = 27


class Window:
    """A window on the screen."""

    def __init__(self, title: str) -> None:
        """Open the window.

        Args:
            title: title of the window.

        Raises:
            UsageError: there is no screen, or OpenCV was built without windows.
        """
        no_screen = not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
        if sys.platform.startswith("linux") and no_screen:  # some builds of OpenCV would abort
            raise UsageError("--show: there is no screen here; --output writes files instead")
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            raise UsageError(
                "--show: this OpenCV has no windows (opencv-python has, opencv-python-headless "
                "has not); --output writes files instead"
            ) from error
        self._title = title

    def show(self, picture: np.ndarray, wait_ms: int) -> bool:
        """Show a picture.

        Args:
            picture: (H, W, 3) uint8, RGB.
            wait_ms: milliseconds to wait for a key; 0 waits until a key is pressed.

        Returns:
            False if the user pressed Escape or q.
        """
        cv2.imshow(self._title, picture[:, :, ::-1])
        return cv2.waitKey(wait_ms) & 0xFF not in (_ESCAPE, ord("q"))
