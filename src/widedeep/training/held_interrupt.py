"""Ctrl-C while training: the step is finished first, so that what is saved is whole."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any


class HeldInterrupt:
    """Holds the first Ctrl-C back until :meth:`check`; a second one interrupts at once."""

    def __init__(self, *, announce: bool = False) -> None:
        self._announce = announce
        self._pending = False
        self._holds = False
        self.forced = False
        """True if a second Ctrl-C interrupted, perhaps in the middle of a step."""

    def __enter__(self) -> HeldInterrupt:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._hold)
            self._holds = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._holds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._holds = False

    def _hold(self, number: int, frame: FrameType | None) -> Any:
        if self._pending:
            self.forced = True
            raise KeyboardInterrupt
        self._pending = True
        if self._announce:
            # print may be under way in the very thread that is interrupted here.
            text = "\nfinishing this step, then saving (Ctrl-C again: stop at once, save nothing)\n"
            with contextlib.suppress(OSError):
                os.write(2, text.encode())

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt
