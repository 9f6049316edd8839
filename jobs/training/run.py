"""One attempt of a run, from spec.json to result.json. Everything torch-sized is imported by then or imported here.

Ends where the process begins: arguments, signals and the hand-over are jobs.training.child's.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import itertools
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jobs import loops, methods, tasks
from jobs.data.columns import Shape
from jobs.data.mends import Mended, mended
from jobs.data.store import count_rows
from jobs.data.templates import with_template
from jobs.errors import UserError
from jobs.events import EventLog, Phase, Started
from jobs.files import write_whole
from jobs.hardware import Hardware
from jobs.memory.estimate import Planner
from jobs.methods.base import Context, Method
from jobs.result import Result
from jobs.rundir import RunFiles
from jobs.spec import RunSpec
from jobs.tasks.base import READERS, Encoded
from jobs.training import checkpoints as saved
from jobs.training import heads, load
from jobs.training.cache import RowCache
from jobs.training.checkpoints import Checkpoints, Progress
from jobs.training.data import Row, encode_rows, rows_taken, split
from jobs.training.failures import reason
from jobs.training.lengths import lengths_of
from jobs.training.loop import Job, TrainingLoop
from jobs.training.monitor import Ended, Monitor, StopRequest
from jobs.training.objective import Objective, Setting
from jobs.training.prompts import FixedPrompts

logger = logging.getLogger(__name__)
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors")
_TELL_SECONDS = 2.0  # between two words of progress
SAMPLES = 20  # validation rows that each evaluation shows with what was predicted


class _Stopped(Exception):
    """Asked to stop before the first step."""


LoadModel = Callable[..., tuple[Any, tuple[str, ...]]]  # load.load_model, or what does as much


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
    ) -> None:
        self.result: Result | None = None  # once it has ended
        self._files = files
        self._number = number
        self._stop = stop
        self._loop = loop
        self._load_model = load_model
        self._begin = time.monotonic()
        self._events = EventLog(files.events)
        self._spec: RunSpec | None = None
        self._device: load.Device | None = None
        self._checkpoints: Checkpoints | None = None
        self._monitor: Monitor | None = None
        self._trainable = self._total = 0
        self._hardware: Hardware | None = None

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
        except _Stopped:
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
        job, prompts, left_out, choice = self._prepare(spec, checkpoints)
        monitor = self._monitor = Monitor(job, self._events, checkpoints, prompts, self._stop)
        assert self._hardware
        self._events.append(
            Started(
                attempt=self._number,
                step=job.progress.step,
                total_steps=job.total_steps,
                train_rows=len(job.train),
                validation_rows=len(job.validation),
                left_out_rows=left_out,
                trainable_parameters=self._trainable,
                total_parameters=self._total,
                hardware=self._hardware.model_dump()
                | {"dtype": str(job.device.dtype).removeprefix("torch."), "loop": choice.loop, "loop_why": choice.why},
                packages=_packages(),
            )
        )
        if job.progress.step >= job.total_steps or self._early_before(job):
            return None
        self._give_up_if_asked()
        return Ready(job, monitor, choice)

    def _prepare(self, spec: RunSpec, checkpoints: Checkpoints) -> tuple[Job, FixedPrompts, int, loops.Choice]:
        import torch
        from transformers import set_seed

        method, task = methods.method(spec.method), tasks.task(spec.task)
        params = method.Params(**spec.method_params)
        self._say("Loading the tokenizer")
        device = self._device = load.choose_device()
        self._hardware = load.hardware_of(device)  # what is free before this run takes any
        tokenizer = with_template(load.load_tokenizer(spec.base_model), task.Params(**spec.task_params))
        self._give_up_if_asked()
        train, validation, left_out = self._rows(spec, task, tokenizer)
        self._give_up_if_asked()
        setting = Setting(
            params=task.Params(**spec.task_params),
            labels=task.labels(itertools.chain(train, validation)),
            pad_token_id=load.pad_token_id(tokenizer),
            tokenizer=tokenizer,
            max_length=spec.training.max_length,
            facts=task.facts(itertools.chain(train, validation), task.Params(**spec.task_params)),
            samples=_samples(spec, task, tokenizer, validation),
        )
        total_steps = spec.training.steps(len(train))
        newest = checkpoints.newest()
        self._say(f"Loading {spec.base_model.name}")
        set_seed(spec.training.seed)  # a new head is drawn at random
        model, new = self._load_model(
            spec.base_model,
            task.auto_class,
            task.head_config(setting),
            method.quantization_config(params, device.dtype),
            device,
            torch.float32 if method.trains_base else None,  # see jobs.modules.tuned
        )
        taken = rows_taken(train, spec.training, total_steps)
        prepared = task.prepare(
            model,
            taken,
            validation,
            setting,
            device=device,
            batch_size=spec.training.batch_size,
            progress=self._teller("Reading with the base model"),
        )
        setting = replace(setting, prepared=prepared)
        if device.is_cuda:
            logger.info("Loaded: %.2f GB, %.2f GB at the most", device.memory_used() / 1e9, device.memory_peak() / 1e9)
        choice = self._choose(spec, task, method, params, model, device, newest)
        shape = task.body(load.shape_of_model(model))
        if method.quantization(params) == "fp8" and (problems := method.check(params, shape, self._hardware)):
            raise UserError(problems[0])
        planner = functools.partial(
            Planner,
            shape,
            method,
            params,
            spec.training,
            self._hardware,
            lengths_of(train),
            task.sequences,
            task.new_head(setting.params, shape, len(setting.labels)),
            choice.loop,
        )
        plan, _ = planner(1).planned()
        choice = choice.with_plan(plan, shape.layers)
        logger.info(choice.why)
        self._say(f"Attaching {method.label}")
        set_seed(spec.training.seed)
        context = Context(
            task.peft_task_type,
            total_steps,
            spec.base_model.source,
            spec.base_model.revision,
            narrow=choice.loop == "packed",
            computes_in=str(device.dtype).removeprefix("torch."),
        )
        model = method.attach(model, params, context)
        new = heads.train(model, new) if task.head in READERS else ()
        always = spec.training.recompute == "on"
        can = always or getattr(model.get_base_model(), "supports_gradient_checkpointing", True)
        if plan.recomputed and choice.loop == "plain" and can:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        self._trainable, self._total = model.get_nb_trainable_parameters()  # knows how many a 4-bit tensor holds
        as_chat = Shape.TEXT not in task.shapes and bool(tokenizer.chat_template)
        prompts = FixedPrompts(model, tokenizer, spec.prompts if task.talks else (), as_chat, device)
        if prompts and not method.keeps_base:
            self._say("Answering the fixed prompts with the base model")
            try:
                prompts.answer_as_base()  # later it is gone
            except Exception:
                logger.exception("The base model could not answer the fixed prompts; training goes on without them.")
                prompts = FixedPrompts(model, tokenizer, (), as_chat, device)
        if newest:
            self._say(f"Going on after step {newest.step:,}")
            newest.restore(method, model)
        job = Job(
            spec=spec,
            folder=self._files.checkpoints,
            model=model,
            device=device,
            method=method,
            method_params=params,
            objective=Objective(task, setting),
            train=train,
            validation=validation,
            total_steps=total_steps,
            progress=newest.progress if newest else Progress(),
            planner=planner,
            state=newest.state if newest else None,
            new=new,
        )
        return job, prompts, left_out, choice

    def _rows(self, spec: RunSpec, task: tasks.Task, tokenizer: Any) -> tuple[Sequence[Row], Sequence[Row], int]:
        cache = RowCache.of(spec, task, tokenizer)
        found = cache.read()
        if found:
            self._say("Rows were prepared earlier: taken from the cache")
        else:
            total = count_rows(spec.dataset.rows)
            self._say(f"Preparing {total:,} rows")
            tell = self._teller("Preparing")
            found = encode_rows(
                spec,
                task,
                tokenizer,
                mended(spec.dataset.rows, spec.dataset.mapping, spec.dataset.mends),
                lambda done: tell(done, total),
                self._files.directory,
            )
            cache.keep(*found)
        rows, left_out = found
        count = spec.training.validation_rows(len(rows))
        labels = task.target_labels if spec.training.stratified and task.head in READERS else None
        train, validation = split(rows, count, spec.training.seed, labels)
        logger.info("%d rows to train on, %d for validation, %d left out", len(train), len(validation), left_out.count)
        return train, validation, left_out.count

    def _teller(self, doing: str) -> Callable[[int, int], None]:
        """Called with how many of how many rows are done: says so now and then. Raises _Stopped where asked to."""
        told = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal told
            self._give_up_if_asked()
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                self._say(f"{doing} {total:,} rows: {done:,} done")

        return progress

    def _choose(
        self,
        spec: RunSpec,
        task: tasks.Task,
        method: Method,
        params: Any,
        model: Any,
        device: load.Device,
        newest: saved.Checkpoint | None,
    ) -> loops.Choice:
        """The loop of this attempt. A resumed run goes on in the loop that wrote its checkpoint."""
        compute = f"{device.name.type} {str(device.dtype).removeprefix('torch.')}"
        choice = loops.choose(spec.training, task, method, params, model.config.model_type, compute)
        if forbidden := loops.problem(choice, task, method, params):
            raise UserError(forbidden)
        if newest is None:
            return choice
        begun: loops.LoopName = "packed" if (newest.state / loops.PACKED_STATE).is_file() else "plain"
        if begun == choice.loop:
            return choice
        if begun == "packed":
            raise UserError(
                f"This run was begun in the packed loop, which cannot go on here. {choice.why} Resume it on the "
                "machine it was begun on, or start it again from its settings."
            )
        return loops.begun_plain()

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
        return Result(
            state=state,
            reason=why,
            step=progress.step,
            best_step=progress.best_step,
            best_eval_loss=progress.best_eval_loss,
            adapter_step=kept,
            trainable_parameters=self._trainable,
            peak_memory=self._device.memory_peak() if self._device else None,
            seconds=time.monotonic() - self._begin,
        )

    def _say(self, text: str) -> None:
        self._events.append(Phase(text=text))
        logger.info(text)

    def _give_up_if_asked(self) -> None:
        if self._stop:
            raise _Stopped


def _samples(spec: RunSpec, task: tasks.Task, tokenizer: Any, validation: Sequence[Row]) -> dict[int, Encoded]:
    """A few validation rows with their texts, by number, for the evaluations of a task that is not prompted."""
    if task.talks:
        return {}
    shown = {}
    rows = Mended(spec.dataset.rows, spec.dataset.mapping, spec.dataset.mends)
    for row in validation[:SAMPLES]:
        (_, values, _), _, _ = rows.row(row.number)
        if values is not None:
            shown[row.number] = task.encode(values, spec.dataset.mapping, tokenizer, task.Params(**spec.task_params))
    return shown


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
