"""Where things lie under Graft's home. Paths come from here, never from a constant elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def default_home() -> Path:
    """GRAFT_HOME where it is set; on a Space with storage mounted, /data; otherwise ./graft-data."""
    if home := os.environ.get("GRAFT_HOME"):
        return Path(home)
    if os.environ.get("SPACE_ID") and os.access("/data", os.W_OK):
        return Path("/data/graft")
    return Path.cwd() / "graft-data"


@dataclass(frozen=True)
class Home:
    """The folder that holds all state. Catalog rows store paths relative to `root`, so a home can be moved."""

    root: Path

    @classmethod
    def at(cls, root: str | Path | None = None) -> Home:
        """The home at `root` (or the default one), its folders made."""
        home = cls(Path(root or default_home()).expanduser().resolve())
        for folder in (home.models, home.datasets, home.runs, home.logs, home.uploads):
            folder.mkdir(parents=True, exist_ok=True)
        return home

    @property
    def database(self) -> Path:
        return self.root / "graft.db"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @property
    def server_lock(self) -> Path:
        """Held (flock) by the one server of this home for as long as it lives."""
        return self.root / "server.lock"

    @property
    def worker_lock(self) -> Path:
        """Held (flock) by the one worker of this home; its text is the worker's pid."""
        return self.root / "worker.lock"

    def run(self, run_id: int) -> Path:
        """The directory of one run: the run contract's files live here."""
        return self.runs / str(run_id)

    def dataset(self, fingerprint: str) -> Path:
        return self.datasets / fingerprint

    def absolute(self, relative: str) -> Path:
        """A path stored in the catalog. Raises ValueError where it would leave the home."""
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root):
            raise ValueError(f"{relative!r} is outside Graft's home")
        return path

    def relative(self, path: Path) -> str:
        return str(path.resolve().relative_to(self.root))
