"""The seam between the worker and where training happens: this machine now, a cluster later."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from jobs.process import Identity


class Executor(Protocol):
    """Starts training children on run directories (jobs.rundir.RunFiles). All else travels through the directory."""

    slots: int  # how many runs may be active at once

    def start(self, directory: Path, attempt: int) -> Identity:
        """Begin an attempt of the run in `directory`. Returns when process.json names the child."""
        ...

    def alive(self, identity: Identity) -> bool:
        """Whether the child still works. True for children that an earlier worker started, too."""
        ...

    def exit_code(self, identity: Identity) -> int | None:
        """How a dead child ended (negative: the signal); None where only its own parent could know."""
        ...

    def end(self, identity: Identity, grace: float) -> None:
        """End the child and all that it started: asked first, by force after `grace` seconds. Blocks."""
        ...

    def warm(self) -> None:
        """Nothing trains: get ready for the next start. Cheap to call often."""
        ...

    def close(self) -> None:
        """Let go of what waits unused. Children at work go on."""
        ...
