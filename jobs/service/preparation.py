"""The starter model's conversion in the background of a server: how far it is, and what went wrong."""

from __future__ import annotations

import logging
import threading

from jobs.errors import UserError
from jobs.service.models import Models, Progress

log = logging.getLogger(__name__)


class Preparation:
    """Runs Models.prepare_starter on a thread. `version` grows with everything that a page would show anew."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._thread: threading.Thread | None = None
        self.version = 0
        self.progress: Progress | None = None  # None where nothing is being prepared
        self.problems: tuple[str, ...] = ()

    def start(self) -> None:
        """Begin, or try again after a failure. Does nothing while it works."""
        if self._thread is None or not self._thread.is_alive():
            self.problems = ()
            self._thread = threading.Thread(target=self._work, name="starter", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            for progress in self._models.prepare_starter():
                self.progress = progress
                self.version += 1
        except UserError as error:
            self.problems = error.problems
        except Exception:
            log.exception("preparing the starter model failed")
            self.problems = ("The starter model could not be prepared. The reason is in logs/server.log.",)
        self.progress = None
        self.version += 1
