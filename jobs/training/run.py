"""One attempt of a run, from spec.json to result.json. Everything torch-sized is imported by then or imported here.

Ends where the process begins: arguments, signals and the hand-over are jobs.training.child's. What stands between the
spec and the first step is prepare.py's.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jobs import loops
from jobs.errors import UserError
from jobs.events import EventLog, Phase, Started
from jobs.files import write_whole
from jobs.result import Result
from jobs.rundir import RunFiles
from jobs.spec import RunSpec
from jobs.training import checkpoints as saved
from jobs.training import load
from jobs.training.checkpoints import Checkpoints, Progress
from jobs.training.failures import reason
from jobs.training.loop import Job, TrainingLoop
from jobs.training.monitor import Ended, Monitor, StopRequest
from jobs.training.prepare import HardwareOf, LoadModel, Preparation, StoppedEarly

logger = logging.getLogger(__name__)
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Ready:
    """A run that waits for its loop."""

    job: Job
    monitor: Monitor
    choice: loops.Choice


class Attempt:
    """Prepares, trains, finishes. What it knows when something goes wrong is what the result can say."""

    def __init__(
        self,
        files: RunFiles,
        number: int,
        stop: StopRequest,
        loop: TrainingLoop | None = None,
        load_model: LoadModel = load.load_model,
        hardware_of: HardwareOf | None = None,
    ) -> None:
        self.result: Result | None = None  # once it has ended
        self._files = files
        self._number = number
        self._stop = stop
        self._loop = loop
        self._load_model = load_model
        self._hardware_of = hardware_of or load.hardware_of
        self._begin = time.monotonic()
        self._events = EventLog(files.events)
        self._spec: RunSpec | None = None
        self._checkpoints: Checkpoints | None = None
        self._monitor: Monitor | None = None
        self._preparation: Preparation | None = None

    def run(self) -> Result:
        """Never raises: whatever happens is the result, and result.json is the last thing written."""
        with self.prepared() as ready:
            if ready:
                loop = self._loop or _loop(ready.choice.loop)
                loop(ready.job, ready.monitor)
        assert self.result
        return self.result

    @contextlib.contextmanager
    def prepared(self) -> Iterator[Ready | None]:
        """What is to be trained in the body; None where there is nothing, because it was all done before, or went
        wrong. What goes wrong in the body is the result, too."""
        ready: Ready | None = None
        try:
            ready = self._ready()
        except BaseException as error:
            self._conclude(error)
        try:
            yield ready
            if not self.result:
                self._conclude(None)
        except BaseException as error:
            self._conclude(error)

    def _conclude(self, error: BaseException | None) -> None:
        try:
            if error:
                raise error
            monitor = self._monitor
            assert monitor
            self._say("Saving the adapter")
            kept = self._publish(monitor.adapter_step)
            result = self._result("stopped" if monitor.ended is Ended.STOPPED else "completed", _why(monitor), kept)
        except StoppedEarly:
            result = self._result("stopped", "Stopped on request before a step was taken.", self._publish_earlier())
        except BaseException as error:
            traceback.print_exc()
            result = self._result("failed", self._reason(error), self._publish_earlier())
        self.result = result
        if result.reason:
            logger.info("%s: %s", result.state.capitalize(), result.reason)
        try:
            write_whole(self._files.result, result.model_dump_json())
        except OSError:  # a full disk: the worker finds an ended child without a result and reads the log
            traceback.print_exc()

    def _ready(self) -> Ready | None:
        files = self._files
        spec = self._spec = _read_spec(files.spec)
        checkpoints = self._checkpoints = Checkpoints(files.checkpoints)
        preparation = self._preparation = Preparation(
            files, spec, checkpoints, self._load_model, self._hardware_of, self._say, self._give_up_if_asked
        )
        job, prompts = preparation.make()
        assert preparation.choice and preparation.hardware
        choice = preparation.choice
        monitor = self._monitor = Monitor(job, self._events, checkpoints, prompts, self._stop)
        self._events.append(
            Started(
                attempt=self._number,
                step=job.progress.step,
                total_steps=job.total_steps,
                train_rows=len(job.train),
                validation_rows=len(job.validation),
                left_out_rows=preparation.left_out,
                trainable_parameters=preparation.trainable,
                total_parameters=preparation.total,
                hardware=preparation.hardware.model_dump()
                | {
                    "dtype": str(job.device.dtype).removeprefix("torch."),
                    "loop": choice.loop,
                    "loop_why": choice.why,
                    "slowdown": round(preparation.slowdown, 3),  # for the time of runs like it (jobs.service.paces)
                },
                packages=_packages(),
            )
        )
        if job.progress.step >= job.total_steps or self._early_before(job):
            return None
        self._give_up_if_asked()
        return Ready(job, monitor, choice)

    def _early_before(self, job: Job) -> bool:
        """Whether an earlier attempt ended early and was killed before it could say so."""
        patience = job.spec.training.early_stop
        return bool(patience) and job.progress.evaluations_without_fall >= patience

    def _publish(self, step: int | None) -> int | None:
        """adapter/ from the checkpoint of `step`; None where there is none."""
        checkpoint = self._checkpoints.at(step) if self._checkpoints and step else None
        if checkpoint is None:
            return None
        saved.publish(checkpoint.adapter, self._files.adapter)
        return checkpoint.step

    def _publish_earlier(self) -> int | None:
        """What the run's earlier steps brought forth is usable although this attempt went wrong."""
        try:
            newest = self._checkpoints.newest() if self._checkpoints else None
            return self._publish(newest.progress.best_step or newest.step) if newest else None
        except OSError:
            traceback.print_exc()
            return None

    def _reason(self, error: BaseException) -> str:
        step = self._monitor.current_step if self._monitor else 0
        return reason(error, step, self._files.directory, self._spec.base_model if self._spec else None)

    def _result(self, state: Literal["completed", "stopped", "failed"], why: str | None, kept: int | None) -> Result:
        progress = self._monitor.progress if self._monitor else Progress()
        prepared = self._preparation
        return Result(
            state=state,
            reason=why,
            step=progress.step,
            best_step=progress.best_step,
            best_eval_loss=progress.best_eval_loss,
            adapter_step=kept,
            trainable_parameters=prepared.trainable if prepared else 0,
            peak_memory=prepared.device.memory_peak() if prepared and prepared.device else None,
            seconds=time.monotonic() - self._begin,
        )

    def _say(self, text: str) -> None:
        self._events.append(Phase(text=text))
        logger.info(text)

    def _give_up_if_asked(self) -> None:
        if self._stop:
            raise StoppedEarly


def _loop(name: loops.LoopName) -> TrainingLoop:
    if name == "packed":
        from jobs.training.packed.loop import train as packed

        return packed
    from jobs.training.plain import train as plain

    return plain


def _read_spec(path: Path) -> RunSpec:
    try:
        return RunSpec.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError("The run has no spec.json; start it again from its settings.") from None
    except ValueError as error:
        raise UserError(f"The run's spec.json cannot be read ({error}). Start it again from its settings.") from error


def _why(monitor: Monitor) -> str | None:
    progress = monitor.progress
    if monitor.ended is Ended.STOPPED:
        return f"Stopped on request after step {progress.step:,}."
    if monitor.ended is Ended.EARLY:
        return (
            f"Ended early after step {progress.step:,}: the validation loss had not fallen for "
            f"{progress.evaluations_without_fall} evaluations. The adapter is that of its lowest, "
            f"step {progress.best_step:,}."
        )
    return None


def _packages() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
