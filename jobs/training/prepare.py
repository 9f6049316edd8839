"""From a run's spec to a job that waits for its loop: rows, model, what is trained beside it, the plan for the memory.

Ends at the first step. What is made of it, and what is told when it goes wrong, is run.py's.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jobs import loops, methods, tasks
from jobs.data.columns import Shape
from jobs.data.mends import Mended, mended
from jobs.data.store import count_rows
from jobs.data.templates import with_template
from jobs.errors import UserError
from jobs.hardware import Hardware
from jobs.memory.estimate import Planner
from jobs.methods.base import Context, Method
from jobs.rundir import RunFiles
from jobs.shape import ModelShape
from jobs.spec import RunSpec
from jobs.tasks.base import READERS, Encoded
from jobs.training import checkpoints as saved
from jobs.training import heads, load
from jobs.training.cache import RowCache
from jobs.training.checkpoints import Checkpoints, Progress
from jobs.training.data import Row, encode_rows, rows_taken, split
from jobs.training.lengths import lengths_of
from jobs.training.loop import Job
from jobs.training.objective import Objective, Setting
from jobs.training.prompts import FixedPrompts, expected_tokens

logger = logging.getLogger(__name__)
_TELL_SECONDS = 2.0  # between two words of progress
SAMPLES = 20  # validation rows that each evaluation shows with what was predicted

LoadModel = Callable[..., tuple[Any, tuple[str, ...]]]  # load.load_model, or what does as much
HardwareOf = Callable[[load.Device], Hardware]  # load.hardware_of, or what does as much


class StoppedEarly(Exception):
    """Asked to stop before the first step."""


class Preparation:
    """What it has found so far stands in its attributes, also when it did not come to its end.

    `say` is called with what is done next; `give_up` now and then, and raises StoppedEarly where the run is to stop.
    """

    def __init__(
        self,
        files: RunFiles,
        spec: RunSpec,
        checkpoints: Checkpoints,
        load_model: LoadModel,
        hardware_of: HardwareOf,
        say: Callable[[str], None],
        give_up: Callable[[], None],
    ) -> None:
        self._files = files
        self._spec = spec
        self._checkpoints = checkpoints
        self._load_model = load_model
        self._hardware_of = hardware_of
        self._say = say
        self._give_up = give_up
        self.device: load.Device | None = None
        self.hardware: Hardware | None = None
        self.choice: loops.Choice | None = None
        self.slowdown = 1.0  # of a step, by what saves memory
        self.left_out = 0  # rows
        self.trainable = self.total = 0  # parameters

    def make(self) -> tuple[Job, FixedPrompts]:
        """Raises StoppedEarly where asked to."""
        import torch
        from transformers import set_seed

        spec = self._spec
        method, task = methods.method(spec.method), tasks.task(spec.task)
        params = method.Params(**spec.method_params)
        self._say("Loading the tokenizer")
        device = self.device = load.choose_device()
        hardware = self.hardware = self._hardware_of(device)  # what is free before this run takes any
        tokenizer = with_template(load.load_tokenizer(spec.base_model), task.Params(**spec.task_params))
        self._give_up()
        train, validation = self._rows(task, tokenizer)
        self._give_up()
        setting = self._setting(task, tokenizer, train, validation)
        total_steps = spec.training.steps(len(train))
        newest = self._checkpoints.newest()
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
        whole = load.shape_of_model(model)
        choice = self._choose(task, method, params, whole, hardware, newest)
        shape = task.body(whole)
        if method.quantization(params) == "fp8" and (problems := method.check(params, shape, hardware)):
            raise UserError(problems[0])
        planner = functools.partial(
            Planner,
            shape,
            method,
            params,
            spec.training,
            hardware,
            lengths_of(train, validation),
            task.sequences,
            task.new_head(setting.params, shape, len(setting.labels)),
            choice.loop,
        )
        alone = planner(1)
        plan, _ = alone.planned()
        self.slowdown = alone.slowdown(plan)
        choice = self.choice = choice.with_plan(plan, shape.layers)
        logger.info(choice.why)
        if choice.loop == "packed" and not device.is_cuda:  # which joins weights
            load.leave_files(model)
        self._say(f"Attaching {method.label}")
        model = self._attached(model, task, method, params, choice.loop, device, total_steps)
        new = heads.train(model, new) if task.head in READERS else ()
        if choice.loop == "plain" and plan.recomputed:
            self._recompute(model)
        self.trainable, self.total = model.get_nb_trainable_parameters()  # knows how many a 4-bit tensor holds
        prompts = self._fixed_prompts(model, tokenizer, task, method, device, train)
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
        return job, prompts

    def _setting(self, task: tasks.Task, tokenizer: Any, train: Sequence[Row], validation: Sequence[Row]) -> Setting:
        spec = self._spec
        params = task.Params(**spec.task_params)
        return Setting(
            params=params,
            labels=task.labels(itertools.chain(train, validation)),
            pad_token_id=load.pad_token_id(tokenizer),
            tokenizer=tokenizer,
            max_length=spec.training.max_length,
            facts=task.facts(itertools.chain(train, validation), params),
            samples=_samples(spec, task, tokenizer, validation),
        )

    def _attached(
        self,
        model: Any,
        task: tasks.Task,
        method: Method,
        params: Any,
        loop: loops.LoopName,
        device: load.Device,
        total_steps: int,
    ) -> Any:
        from transformers import set_seed

        spec = self._spec
        set_seed(spec.training.seed)
        context = Context(
            task.peft_task_type,
            total_steps,
            spec.base_model.source,
            spec.base_model.revision,
            narrow=loop == "packed",
            computes_in=str(device.dtype).removeprefix("torch."),
        )
        return method.attach(model, params, context)

    def _recompute(self, model: Any) -> None:
        """Where the model can, or has to: who set Always is told what is in the way."""
        base = model.get_base_model()
        if self._spec.training.recompute == "on" or getattr(base, "supports_gradient_checkpointing", True):
            base.activation_checkpointing_enable({"use_reentrant": False})

    def _fixed_prompts(
        self, model: Any, tokenizer: Any, task: tasks.Task, method: Method, device: load.Device, train: Sequence[Row]
    ) -> FixedPrompts:
        as_chat = Shape.TEXT not in task.shapes and bool(tokenizer.chat_template)
        asked = self._spec.prompts if task.talks else ()
        prompts = FixedPrompts(model, tokenizer, asked, as_chat, device, expected_tokens(train) if asked else 0)
        if prompts and not method.keeps_base:
            self._say("Answering the fixed prompts with the base model")
            try:
                prompts.answer_as_base()  # later it is gone
            except Exception:
                logger.exception("The base model could not answer the fixed prompts; training goes on without them.")
                prompts = FixedPrompts(model, tokenizer, (), as_chat, device)
        return prompts

    def _rows(self, task: tasks.Task, tokenizer: Any) -> tuple[Sequence[Row], Sequence[Row]]:
        """(to train on, for validation)."""
        spec = self._spec
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
        self.left_out = left_out.count
        return train, validation

    def _teller(self, doing: str) -> Callable[[int, int], None]:
        """Called with how many of how many rows are done: says so now and then. Raises StoppedEarly where asked to."""
        told = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal told
            self._give_up()
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                self._say(f"{doing} {total:,} rows: {done:,} done")

        return progress

    def _choose(
        self,
        task: tasks.Task,
        method: Method,
        params: Any,
        shape: ModelShape,
        hardware: Hardware,
        newest: saved.Checkpoint | None,
    ) -> loops.Choice:
        """The loop of this attempt. A resumed run goes on in the loop that wrote its checkpoint."""
        choice = loops.choose(self._spec.training, task, method, params, shape, hardware)
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
