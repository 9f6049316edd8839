"""Checkpoints of a run: checkpoint-<step>/ with adapter/ (to answer with), state/ (to go on from: what was trained and
the loop's own) and progress.json.

A folder of that name is whole: it was written under another name and renamed. The best and the newest are kept; of the
best, where it is not the newest, only what answers.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.files import whole_folder
from jobs.frozen import Frozen
from jobs.methods.base import Method

_TRAINED = "trained.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")


class Progress(Frozen):
    """How far a run is; with the loop's own state all that a resumed attempt needs to go on as if nothing happened."""

    step: int = 0
    best_step: int | None = None
    best_eval_loss: float | None = None
    evaluated_step: int | None = None  # of the latest evaluation
    evaluations_without_fall: int = 0


@dataclass(frozen=True)
class Checkpoint:
    folder: Path

    @property
    def step(self) -> int:
        return int(self.folder.name.rsplit("-", 1)[1])

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def restore(self, method: Method, model: Any) -> None:
        """Put what was trained into `model`, to which `method` has just been attached."""
        from safetensors.torch import load_file

        method.restore(model, load_file(self.state / _TRAINED))

    @property
    def progress(self) -> Progress:
        return Progress.model_validate_json((self.folder / "progress.json").read_bytes())


class Checkpoints:
    """The checkpoints/ folder of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        for half_written in folder.glob(".*"):
            shutil.rmtree(half_written, ignore_errors=True)

    def at(self, step: int) -> Checkpoint | None:
        checkpoint = Checkpoint(self._folder / f"checkpoint-{step}")
        return checkpoint if checkpoint.folder.is_dir() else None

    def newest(self) -> Checkpoint | None:
        return max(self._all(), key=lambda checkpoint: checkpoint.step, default=None)

    def write(
        self,
        progress: Progress,
        method: Method,
        model: Any,
        save_state: Callable[[Path], None],
        complete: Callable[[Path], None] = lambda folder: None,
    ) -> Checkpoint:
        """A whole checkpoint of this moment. `save_state` fills a folder with what the loop needs to go on; `complete`
        adds to the adapter's folder what the method knows nothing of."""
        from safetensors.torch import save_file

        with whole_folder(self._folder / f"checkpoint-{progress.step}") as folder:
            method.save(model, folder / "adapter")
            complete(folder / "adapter")
            (folder / "state").mkdir()
            trained = {name: value.cpu().contiguous() for name, value in method.state(model).items()}
            save_file(trained, folder / "state" / _TRAINED)
            save_state(folder / "state")
            (folder / "progress.json").write_text(progress.model_dump_json(), encoding="utf-8")
        for old in self._all():
            if old.step not in (progress.step, progress.best_step):
                shutil.rmtree(old.folder, ignore_errors=True)
            elif old.step != progress.step:  # nobody goes on from there, and the state is the largest part
                shutil.rmtree(old.state, ignore_errors=True)
        return Checkpoint(self._folder / f"checkpoint-{progress.step}")

    def _all(self) -> list[Checkpoint]:
        return [Checkpoint(path) for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]


def publish(adapter: Path, target: Path) -> None:
    """Copy an adapter folder to `target`, whole or not at all."""
    with whole_folder(target) as folder:
        shutil.copytree(adapter, folder, dirs_exist_ok=True)
