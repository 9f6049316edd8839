"""What trained heads say of a text: one adapter, or several side by side, also on different base models."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from jobs.card import AdapterCard, read_card
from jobs.errors import UserError
from jobs.frozen import Frozen
from jobs.hardware import this_machine
from jobs.inference.client import PredictorClient
from jobs.inference.slot import Slot
from jobs.memory.estimate import compute_bytes
from jobs.rpc import ChildDied
from jobs.service.models import AdapterView, BaseModelView, Models
from jobs.service.playground import Status
from jobs.sizes import bytes_texts
from jobs.tasks import Task
from jobs.tasks import task as find_task
from jobs.tasks.predictions import Prediction

MOST_ADAPTERS = 8
MOST_INPUTS = 1_000
MOST_CHARS = 200_000  # of one text
# What the texts that tasks take are called, in words.
INPUTS = {"text": "Text", "text_pair": "Second text", "question": "Question", "context": "Passage"}
_ROOM = 1.3  # the base's weights, and some for what is computed
_LOOK = 0.5  # seconds between two looks at the free memory


class HeadView(Frozen):
    """What an adapter can be asked."""

    adapter: AdapterView
    task: str
    task_label: str
    inputs: dict[str, bool]  # name of each text it takes -> whether it must be given
    labels: tuple[str, ...]
    max_length: int  # tokens


class Answered(Frozen):
    """What one adapter says of every input."""

    adapter_id: int
    name: str
    task: str
    predictions: tuple[Prediction, ...]  # in the inputs' order
    baseline: Prediction | None  # what could be said without looking: the most frequent label, the mean
    seconds: float


class Doing(Status):
    """What is being done for some of those who are asked."""

    adapter_ids: tuple[int, ...]


def input_label(name: str) -> str:
    """What a text that a task takes is called on the page."""
    return INPUTS.get(name, name.replace("_", " ").capitalize())


class Predictions:
    def __init__(self, models: Models, slot: Slot, training: Callable[[], str | None] = lambda: None) -> None:
        """`training`: the name of the run that trains now, whose memory is waited for where a base needs it."""
        self._models = models
        self._slot = slot
        self._training = training

    def adapters(self, task: str | None = None) -> list[HeadView]:
        """Every adapter that can be asked, newest first; those of one task where it is named."""
        found = []
        for view in self._models.adapters():
            if (task is None or view.task == task) and find_task(view.task).inputs:
                try:
                    found.append(self.head(view.id))
                except UserError:
                    continue  # its files are gone: the Models page says so
        return found

    def head(self, adapter_id: int) -> HeadView:
        """Raises UserError where there is no such adapter, or it answers in a chat instead."""
        view, card, task = self._read(adapter_id)
        return HeadView(
            adapter=view,
            task=card.task,
            task_label=task.label,
            inputs=dict(task.inputs),
            labels=card.labels,
            max_length=card.max_length,
        )

    def warm(self, adapter_id: int) -> None:
        """Load an adapter in the background, so that its first answer is quick. Raises UserError where there is none.

        Does nothing where the place is taken.
        """
        view, _, _ = self._read(adapter_id)
        ref, folder = self._models.ref(view.base_model_id), self._models.adapter_path(adapter_id)

        def load() -> None:
            seat, _ = self._slot.take(ref, PredictorClient, wait=0)
            if seat:
                try:
                    with contextlib.suppress(UserError):  # the first question will say what is wrong
                        seat.client.load([folder])
                finally:
                    self._slot.leave(seat)

        threading.Thread(target=load, daemon=True).start()

    def predict(self, adapter_id: int, inputs: Sequence[Mapping[str, str]]) -> tuple[Prediction, ...]:
        """What one adapter says of each input. Raises UserError where it cannot be asked."""
        *_, answered = (said for said in self.ask([adapter_id], inputs) if isinstance(said, Answered))
        return answered.predictions

    def ask(self, adapter_ids: Sequence[int], inputs: Sequence[Mapping[str, str]]) -> Iterator[Doing | Answered]:
        """What each adapter says of every input, one Answered an adapter as they come; adapters of one base model
        follow each other. Between them what is being done, as Doing. Closing the iterator ends it.

        Raises UserError, with every problem, before anything is loaded, and where something goes wrong on the way.
        """
        problems = [] if 1 <= len(adapter_ids) <= MOST_ADAPTERS else [f"Choose between 1 and {MOST_ADAPTERS} adapters."]
        if not 1 <= len(inputs) <= MOST_INPUTS:
            problems.append(f"You gave {len(inputs):,} inputs; between 1 and {MOST_INPUTS:,} are answered at once.")
        read = []
        for adapter_id in dict.fromkeys(adapter_ids):
            try:
                read.append(self._read(adapter_id))
            except UserError as error:
                problems += error.problems
        tasks = {card.task: task for _, card, task in read}
        for task in tasks.values():
            problems += _input_problems(task, inputs)
        UserError.raise_all(dict.fromkeys(problems))
        given = [{name: text for name, text in one.items() if text} for one in inputs]
        by_base: dict[int, list[tuple[AdapterView, AdapterCard, Task]]] = {}
        for item in read:
            by_base.setdefault(item[0].base_model_id, []).append(item)
        for base_id, items in by_base.items():
            yield from self._on_base(base_id, items, given)

    def _on_base(
        self, base_id: int, items: Sequence[tuple[AdapterView, AdapterCard, Task]], inputs: Sequence[dict[str, str]]
    ) -> Iterator[Doing | Answered]:
        base, ref = self._models.base(base_id), self._models.ref(base_id)
        asked = tuple(view.id for view, _, _ in items)
        gone = None
        while True:
            seat, other = self._slot.take(ref, PredictorClient)
            if seat is None:
                yield Doing(text=f"Waiting until {other} has finished its answer", adapter_ids=asked)
                continue
            gone = other or gone
            short = None if seat.client.alive else self._short_of_memory(base)
            if short is None:
                break
            self._slot.leave(seat)
            yield Doing(text=short, adapter_ids=asked)
            time.sleep(_LOOK)
        try:
            if not seat.client.alive:
                yield Doing(text=self._loading(base, gone), adapter_ids=asked)
            folders = [self._models.adapter_path(view.id) for view, _, _ in items]
            done = 0
            with contextlib.closing(seat.client.predict(folders, inputs)) as replies:
                for reply in replies:
                    if reply.loading:
                        yield Doing(text=self._loading(base, gone), adapter_ids=asked[done:])
                    if reply.predictions is not None:
                        view, card, _ = items[done]
                        done += 1
                        yield Answered(
                            adapter_id=view.id,
                            name=view.title,
                            task=card.task,
                            predictions=reply.predictions,
                            baseline=reply.baseline,
                            seconds=reply.seconds,
                        )
        except ChildDied as error:
            raise UserError(
                seat.ended_because
                or "The process ended in the middle of its work, perhaps because memory ran out. Ask again: it starts "
                "anew. Its log is engine.txt."
            ) from error
        finally:
            self._slot.leave(seat)

    def _short_of_memory(self, base: BaseModelView) -> str | None:
        """Who has the memory that the base needs, and how much that is; None where it can be loaded, or no run would
        give any back."""
        run, hardware = self._training(), this_machine()
        needs = base.shape.parameters * compute_bytes(hardware) * _ROOM
        if run is None or needs <= hardware.memory_free:
            return None
        needed, there = bytes_texts(needs, hardware.memory_free)
        return f"Waiting for memory, which the run {run} has: {base.name} needs about {needed}, {there} are free"

    def _loading(self, base: BaseModelView, gone: str | None) -> str:
        """`gone`: the model that left for it."""
        place = f" in place of {gone}" if gone and gone != base.name else ""
        run = self._training()
        slow = f". The run {run} trains beside it, so this takes longer" if run else ""
        return f"Loading {base.name}{place}{slow}"

    def _read(self, adapter_id: int) -> tuple[AdapterView, AdapterCard, Task]:
        view = self._models.adapter(adapter_id)
        task = find_task(view.task)
        if not task.inputs:
            raise UserError(f"{view.name} was trained for the task {task.label}: ask it in the playground's chat.")
        return view, read_card(self._models.adapter_path(adapter_id)), task


def _input_problems(task: Task, inputs: Sequence[Mapping[str, str]]) -> Iterator[str]:
    needed = [name for name, must in task.inputs.items() if must]
    for number, one in enumerate(inputs, start=1):
        where = f"Input {number}: " if len(inputs) > 1 else ""
        if missing := [name for name in needed if not one.get(name, "").strip()]:
            yield f"{where}Write something into {' and '.join(map(input_label, missing))}."
        if unknown := [name for name in one if name not in task.inputs]:
            yield f"{where}{task.label} takes {', '.join(task.inputs)}, not {', '.join(unknown)}."
        if any(len(text) > MOST_CHARS for text in one.values()):
            yield f"{where}It is longer than {MOST_CHARS:,} characters. Shorten it."
