"""What happens around the steps of a run, whichever loop computes them: events, evaluations, checkpoints, answers,
early stop, Stop. Ends where the loop's arithmetic begins.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from jobs.events import Answers, Evaluation, EventLog, Metrics, Phase
from jobs.events import Checkpoint as CheckpointEvent
from jobs.hardware import give_freed_memory_back
from jobs.training.checkpoints import Checkpoints
from jobs.training.failures import LossIsNotANumber
from jobs.training.loop import Job
from jobs.training.pace import Pace
from jobs.training.prompts import FixedPrompts
from jobs.training.schedule import evaluation_steps

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 600.0  # a crash costs at most this much work, however slow the steps
_LOG_LINES = 1_000  # at most about so many steps are written to the log
_SAMPLED = 1_000  # rows whose lengths stand for all rows' in what is left
_MOST_MEASURED = 0.75  # validation rows for each row trained on, to measure them before training


class Ended(StrEnum):
    COMPLETED = "completed"
    EARLY = "early"  # the validation loss no longer fell
    STOPPED = "stopped"  # asked to


class StopRequest:
    """Whether the run was asked to stop: the stop file is there, or a signal came."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.signalled = False

    def __bool__(self) -> bool:
        return self.signalled or self._file.exists()


class Monitor:
    def __init__(
        self,
        job: Job,
        events: EventLog,
        checkpoints: Checkpoints,
        prompts: FixedPrompts,
        stop: StopRequest,
    ) -> None:
        self.progress = job.progress
        self.current_step = 0  # the one being computed, or saved; 0 before the first
        self.ended: Ended | None = None
        self._job = job
        self._events = events
        self._checkpoints = checkpoints
        self._prompts = prompts
        self._stop = stop
        self._evaluations = evaluation_steps(job.total_steps, job.spec.training.evaluations)
        self._log_every = max(1, job.total_steps // _LOG_LINES)
        self._pace = Pace()
        self._once = 0.0  # seconds that `set_aside` was told of
        self._row_tokens = _mean_length(job)
        self._evaluation_seconds: float | None = None  # of the latest, with what is saved then
        self._mark = self._saved = time.perf_counter()

    def begin(self) -> None:
        """The first step starts now. Before the very first the untrained model is measured: where the curves begin."""
        if not self.progress.step and self._worth_measuring():
            self._measure_untrained()
        self.current_step = self.progress.step + 1
        self._events.append(Phase(text="Training"))
        self._mark = self._saved = time.perf_counter()

    def step_done(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float,
        grad_norm: float | None,
        tokens: int,
        save_state: Callable[[Path], None],
        measures: dict[str, float] | None = None,
    ) -> bool:
        """One optimizer step is taken. `tokens` counts its real tokens; `save_state` fills a folder with what the
        loop needs to go on after this step; `measures` are what `Objective.step_values` said of it, which is asked
        now where they are not given. False: take no further step.

        Raises LossIsNotANumber.
        """
        if measures is None:
            measures = self._job.objective.step_values()
        self.report(step, loss=loss, learning_rate=learning_rate, grad_norm=grad_norm, tokens=tokens, measures=measures)
        last = step >= self._job.total_steps
        stopping = not last and bool(self._stop)
        evaluating = step in self._evaluations and not stopping
        pause = time.perf_counter()
        if evaluating:
            self._give_back()
        eval_loss = self._evaluate() if evaluating and self._job.validation else None
        if evaluating or stopping or last or pause - self._saved >= CHECKPOINT_SECONDS:
            self._save(eval_loss, save_state)
        patience = self._job.spec.training.early_stop
        if last:
            self.ended = Ended.COMPLETED
        elif patience and self.progress.evaluations_without_fall >= patience:
            self.ended = Ended.EARLY
        if evaluating:
            self._evaluation_seconds = time.perf_counter() - pause
        if evaluating and self._prompts and (last or not self._stop):
            self._answer()
        elif self._prompts.untried and not last and not self._stop:
            self._try_prompts()
        if not self.ended and self._stop:
            if not evaluating and not stopping:  # asked for just now
                self._save(None, save_state)
            self.ended = Ended.STOPPED
        if evaluating and not self.ended:
            self._give_back()
            self._events.append(Phase(text="Training"))
        self._mark = time.perf_counter()
        if self.ended is None:
            self.current_step = step + 1
        return self.ended is None

    def set_aside(self, seconds: float) -> None:
        """Of the time since the last step was told: what no later step will take."""
        self._once += seconds

    def due(self, step: int) -> bool:
        """Whether `step_done` must see the weights as they are after this step. Where not, a loop may begin the next
        step and `report` this one later."""
        return (
            step in self._evaluations
            or step >= self._job.total_steps
            or bool(self._stop)
            or self._prompts.untried
            or time.perf_counter() - self._saved >= CHECKPOINT_SECONDS
        )

    def report(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float,
        grad_norm: float | None,
        tokens: int,
        measures: dict[str, float],
    ) -> None:
        """Tell what a step brought; nothing else follows from it. Raises LossIsNotANumber."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self._pace.add(tokens, seconds, self._once)
        self._once = 0.0
        self.progress = self.progress.model_copy(update={"step": step})
        self.current_step = step
        broken = grad_norm is not None and not math.isfinite(grad_norm) and not self._job.device.scales_losses
        if broken or not math.isfinite(loss):  # nor are the weights numbers any more: they must not be saved
            raise LossIsNotANumber(step)
        values = {
            "loss": loss,
            "learning_rate": learning_rate,
            "tokens_per_second": tokens / seconds,
            "memory": float(self._job.device.memory_so_far()),
            **measures,
        }
        if grad_norm is not None and math.isfinite(grad_norm):
            values["grad_norm"] = grad_norm
        eta = self._eta(step)
        self._events.append(Metrics(step=step, values=values, eta_seconds=eta))
        if step % self._log_every == 0 or step == 1:
            logger.info(
                "Step %d of %d: loss %.4f, rate %.2e, gradient %s, %.0f tokens/s, %.0f s to go",
                step,
                self._job.total_steps,
                loss,
                learning_rate,
                "-" if grad_norm is None else f"{grad_norm:.3f}",
                tokens / seconds,
                eta,
            )

    @property
    def adapter_step(self) -> int | None:
        """The step whose weights the run should end with: the best by validation loss, else the last.

        A run stopped while its latest evaluation was the best one was still improving: its last step counts.
        """
        progress = self.progress
        if progress.best_step is None:
            return progress.step or None
        if self.ended is Ended.STOPPED and progress.best_step == progress.evaluated_step:
            return progress.step
        return progress.best_step

    def _eta(self, step: int) -> float:
        job, training = self._job, self._job.spec.training
        steps = job.total_steps - step
        an_epoch = training.steps_an_epoch(len(job.train))
        tokens = steps * len(job.train) / max(1, an_epoch) * self._row_tokens
        return self._pace.seconds(steps, tokens) + self._seconds_of_pauses(step)

    def _seconds_of_pauses(self, step: int) -> float:
        """What the evaluations at and after `step` will take, with saving and answering the fixed prompts."""
        job, prompts = self._job, self._prompts
        pauses = sum(1 for evaluation in self._evaluations if evaluation >= step)
        if not pauses:
            return 0.0
        a_pause = self._evaluation_seconds
        if a_pause is None:  # reading rows is a third of the work of training on them
            steps = job.spec.training.steps_an_epoch(len(job.validation)) if job.validation else 0
            a_pause = self._pace.seconds(steps, len(job.validation) * self._row_tokens) / 3 if steps else 0.0
        return pauses * a_pause + (pauses - 1) * prompts.seconds + prompts.seconds_to_come

    def _worth_measuring(self) -> bool:
        """Whether to measure the untrained model: not where reading the validation rows, a third of the work of
        training on them, takes more than a quarter of the training itself."""
        job, training = self._job, self._job.spec.training
        taken = job.total_steps * training.batch_size * training.gradient_accumulation
        return 0 < len(job.validation) <= _MOST_MEASURED * taken

    def _measure_untrained(self) -> None:
        """Step 0: never the best, and no evaluation without a fall. Nothing was saved that could be gone back to."""
        job = self._job
        self._events.append(Phase(text=f"Measuring the untrained model on {_rows(len(job.validation))}"))
        began = time.perf_counter()
        scores = job.objective.evaluate(job.model, job.validation, job.spec.training.batch_size, job.device)
        self._evaluation_seconds = time.perf_counter() - began
        values = {"eval_loss": scores.loss, **scores.values}
        for name in job.objective.task.unknown_before:
            values.pop(name, None)
        self._events.append(Metrics(step=0, values=values))
        if scores.details:
            self._events.append(Evaluation(step=0, details=scores.details))
        logger.info("Before training: validation loss %.4f", scores.loss)

    def _evaluate(self) -> float:
        """Measure the validation loss, and whether it is the lowest yet."""
        job, step = self._job, self.progress.step
        self._events.append(Phase(text=f"Measuring the validation loss on {_rows(len(job.validation))}"))
        scores = job.objective.evaluate(job.model, job.validation, job.spec.training.batch_size, job.device)
        loss = scores.loss
        if not math.isfinite(loss):
            raise LossIsNotANumber(step)
        self._events.append(Metrics(step=step, values={"eval_loss": loss, **scores.values}))
        if scores.details:
            self._events.append(Evaluation(step=step, details=scores.details))
        best = self.progress.best_eval_loss
        update: dict[str, object] = {"evaluated_step": step}
        if best is None or loss < best:
            update |= {"best_step": step, "best_eval_loss": loss, "evaluations_without_fall": 0}
        else:
            update["evaluations_without_fall"] = self.progress.evaluations_without_fall + 1
        self.progress = self.progress.model_copy(update=update)
        logger.info("Step %d: validation loss %.4f (lowest %.4f)", step, loss, self.progress.best_eval_loss)
        return loss

    def _give_back(self) -> None:
        """On a CPU, what steps or an evaluation have freed: in pieces of other sizes than what comes next needs, it
        would lie there beside it."""
        if not self._job.device.is_cuda:
            give_freed_memory_back()

    def _save(self, eval_loss: float | None, save_state: Callable[[Path], None]) -> None:
        job = self._job
        self._checkpoints.write(self.progress, job.method, job.model, save_state, job.complete_adapter)
        self._saved = time.perf_counter()
        step = self.progress.step
        best = eval_loss is not None and self.progress.best_step == step
        self._events.append(CheckpointEvent(step=step, best=best, eval_loss=eval_loss))

    def _try_prompts(self) -> None:
        """After the first step, which someone waits for: how long answering takes tells how long the rest does."""
        try:
            self._prompts.try_out()
        except Exception:
            logger.exception("The fixed prompts could not be tried; training goes on.")

    def _answer(self) -> None:
        self._events.append(Phase(text="Answering the fixed prompts"))
        try:
            self._events.append(Answers(step=self.progress.step, answers=self._prompts.answers()))
        except Exception:  # hours of training are worth more than a look at them
            logger.exception("The fixed prompts could not be answered; training goes on.")


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _mean_length(job: Job) -> float:
    """Tokens of a training row."""
    rows = job.train[:: max(1, len(job.train) // _SAMPLED)]
    return sum(map(len, rows)) / max(1, len(rows))
