"""The metrics as a line of the log, for a worker that nobody scrapes: RunPod's queue workers have no port."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("imagegen")

#: Of what the process and its interpreter are, none of it changes from one line to the next.
_STATIC = ("python_", "process_start_time", "process_max_fds")


class Report:
    """Writes the figures that are not 0 to the log, each minute and at the end.

    Args:
        figures: the figures by name and labels, as `Metrics.figures` has them; called in a thread of its own.
        seconds: between two lines.
    """

    def __init__(self, figures: Callable[[], dict[str, float]], seconds: float = 60.0) -> None:
        self._figures, self._seconds = figures, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def end(self) -> None:
        """Writes the last line, in which everything is counted."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._write()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._write()

    def _write(self) -> None:
        shown = {
            name: round(value, 4) for name, value in self._figures().items() if value and not name.startswith(_STATIC)
        }
        log.info("metrics", extra={"facts": {"metrics": shown}})
