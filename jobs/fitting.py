"""Settings that fit the free memory: what to change of a run that does not, and what each change costs.

A run already arranges itself in the memory there is (jobs.memory.plan): what is changed here is what its settings
forbid it, or what no arrangement saves. What costs no quality goes first: fewer rows at once with as many a step, then
recomputation where it was forbidden, then the optimizer's numbers in 8 bits, then a base in fewer bits, then rows no
longer than nearly all of them are, and a smaller rank at the very end. Ends at settings and sentences: it starts
nothing, and estimates with jobs.memory.estimate alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from jobs.frozen import Frozen
from jobs.hardware import Hardware
from jobs.loops import Choice, choose, problem
from jobs.memory.estimate import Estimate, Planner, budget, fits, limited
from jobs.memory.kept import Lengths
from jobs.memory.plan import MemoryPlan
from jobs.methods.base import Method
from jobs.shape import ModelShape
from jobs.spec import TrainingParams
from jobs.tasks.base import Task

_LEAST_RANK = 4
_SHORTEST = 64  # tokens: rows are not cut below that
_WORTH = 0.1  # of model and optimizer: 8 bits must save as much to be tried


@dataclass(frozen=True)
class Run:
    """What is to be fitted. `shape` is the whole model's, `trained` what of it the task leaves to the method
    (Task.body); `head` the parameters of a new head. `p99`: the length that 99 of 100 rows do not exceed, where the
    data was checked."""

    shape: ModelShape
    trained: ModelShape
    task: Task
    method: Method
    params: Any
    training: TrainingParams
    lengths: Lengths | None = None
    p99: int | None = None
    head: int | None = None

    @property
    def rank(self) -> int | None:
        return getattr(self.params, "r", None)

    def choice(self, hardware: Hardware) -> Choice:
        return choose(self.training, self.task, self.method, self.params, self.shape, hardware)

    def needs(self, hardware: Hardware) -> Estimate:
        return self.planned(hardware)[1]

    def planned(self, hardware: Hardware) -> tuple[MemoryPlan, Estimate]:
        """How it would go about the memory there is, and what that comes to."""
        return self.planner(hardware).planned()

    def planner(self, hardware: Hardware) -> Planner:
        sequences, lengths = self.task.sequences, self.lengths
        if lengths and lengths.longest > self.training.max_length:  # a shorter maximum cuts the mean, too
            longest = self.training.max_length
            lengths = lengths.model_copy(
                update={
                    "longest": longest,
                    "mean": min(lengths.mean, longest * sequences),
                    "spread": min(lengths.spread, longest),
                }
            )
        loop = self.choice(hardware).loop
        return Planner(
            self.trained, self.method, self.params, self.training, hardware, lengths, sequences, self.head, loop
        )


class Fitted(Frozen):
    """`training` and `params` are as they were where nothing helps, or nothing has to."""

    training: TrainingParams
    params: dict[str, Any]
    changes: tuple[str, ...]  # what was changed and what that costs, a sentence each
    fits: bool
    needs: int  # bytes at the peak, of these settings; of the most saving ones tried where none fit
    allowed: int  # bytes that it may take
    limited: bool  # by the memory limit that was set, and not by what is free
    instead: tuple[str, ...] = ()  # where none fit: what would, set by the person, for the next try; one is enough


def fit(run: Run, hardware: Hardware) -> Fitted:
    """The settings nearest to the run's that fit. Of two changes the later kind is made only where all of the earlier
    kinds together do not do."""
    if fits(needs := run.needs(hardware), hardware, run.training):
        return _answer(run, run, hardware, needs)
    least = (needs, run)
    ranks, lengths, weights = _ranks(run), _lengths(run), _weights(run, hardware)
    moments, recomputes = _moments(run, hardware, needs), _recomputes(run)
    for rank, length, weight, moment, recompute in itertools.product(ranks, lengths, weights, moments, recomputes):
        changed = _changed(run, rank | weight, {**length, **moment, **recompute}, hardware)
        if changed is None:
            continue
        fitting: list[tuple[float, Run, Estimate]] = []
        for batch in _batches(run.training):
            found = _rows_at_once(changed, batch)
            planner = found.planner(hardware)
            plan, needs = planner.planned()
            least = min(least, (needs, found), key=lambda each: each[0].total)
            if fits(needs, hardware, run.training):
                fitting.append((planner.cost(plan), found, needs))
        if fitting:
            # The packed loop makes packs of its own; the plain one is faster with fewer rows than with recomputation.
            packed = run.choice(hardware).loop == "packed"
            _, found, needs = fitting[0] if packed else min(fitting, key=lambda each: each[0])
            return _answer(run, found, hardware, needs)
    return _answer(run, run, hardware, least[0], tuple(_instead(least[1], hardware)))


def _instead(saving: Run, hardware: Hardware) -> Iterator[str]:
    """What is left to the person, for it costs speed or rows, or is theirs to say; each fits with the most saving of
    all else."""
    now = saving.training
    kept_free = hardware.memory_free - budget(hardware, TrainingParams())
    limit = math.ceil((saving.needs(hardware).total + kept_free) / 1e8) / 10
    if now.memory_limit_gb and limit * 1e9 <= hardware.memory_free:
        yield f"Memory limit at {limit:g} GB or more"

    def enough(**settings: Any) -> bool:
        changed = replace(saving, training=now.model_copy(update=settings))
        return fits(changed.needs(hardware), hardware, changed.training)

    if not now.narrow_moments and enough(optimizer="adamw-8bit"):
        yield f"Optimizer at AdamW, 8-bit{', which is slow on a CPU' if hardware.device == 'cpu' else ''}"
    lengths = [now.max_length >> times for times in range(1, now.max_length.bit_length())]
    if length := next((each for each in lengths if each >= _SHORTEST and enough(max_length=each)), 0):
        yield f"Maximum length at {length:,}, where longer rows lose their end"


def _batches(training: TrainingParams) -> Iterator[tuple[int, int]]:
    """(micro-batch, accumulation) with as many rows a step, the given ones first."""
    for size in range(training.batch_size, 0, -1):
        times, rest = divmod(training.batch_size, size)
        if not rest and times * training.gradient_accumulation <= 256:
            yield size, times * training.gradient_accumulation


def _recomputes(run: Run) -> list[dict[str, Any]]:
    """As needed, where it was forbidden."""
    can = run.method.recomputes and run.training.recompute == "off"
    return [{}, {"recompute": "auto"}] if can else [{}]


def _moments(run: Run, hardware: Hardware, needs: Estimate) -> list[dict[str, Any]]:
    """Where very much is trained; on a CPU they take too long."""
    if hardware.device != "cuda" or run.training.narrow_moments:
        return [{}]
    narrow = {"optimizer": "adamw-paged-8bit" if run.training.paged_moments else "adamw-8bit"}
    with_it = replace(run, training=run.training.model_copy(update=narrow)).needs(hardware)
    least = _WORTH * (needs.base + needs.adapter + needs.optimizer)
    return [{}, narrow] if needs.optimizer - with_it.optimizer > least else [{}]


def _weights(run: Run, hardware: Hardware) -> list[dict[str, Any]]:
    """How the base may be held. On a CPU fewer bits save nothing."""
    if hardware.device != "cuda" or getattr(run.params, "base_weights", None) is None:
        return [{}]
    order = ["full", *(["fp8"] if hardware.fp8 or run.params.base_weights == "fp8" else []), "8-bit", "4-bit"]
    return [{}, *({"base_weights": held} for held in order[order.index(run.params.base_weights) + 1 :])]


def _lengths(run: Run) -> list[dict[str, Any]]:
    """The longest row's length, then what 99 of 100 rows do not exceed; none where the data was not checked."""
    now = run.training.max_length
    found: list[dict[str, Any]] = [{}]
    for length in (run.lengths.longest if run.lengths else 0, run.p99 or 0):
        if _SHORTEST <= length < now:
            found.append({"max_length": length})
            now = length
    return found


def _ranks(run: Run) -> list[dict[str, Any]]:
    """Half the rank again and again, with alpha in proportion, so that the adapter stays as strong."""
    found: list[dict[str, Any]] = [{}]
    rank, alpha = run.rank or 0, getattr(run.params, "alpha", None)
    while rank % 2 == 0 and rank // 2 >= _LEAST_RANK:
        rank //= 2
        scaled = {} if alpha is None else {"alpha": max(1, alpha * rank // (run.rank or 1))}
        found.append({"r": rank, **scaled})
    return found


def _changed(run: Run, params: dict[str, Any], training: dict[str, Any], hardware: Hardware) -> Run | None:
    """None where the method refuses, or would lose the faster loop without need."""
    try:
        changed = replace(
            run,
            params=type(run.params)(**run.params.model_dump() | params),
            training=run.training.model_copy(update=training),
        )
    except ValidationError:
        return None
    if run.method.check(changed.params, run.shape, hardware):
        return None
    choice = changed.choice(hardware)
    if problem(choice, changed.task, changed.method, changed.params):
        return None
    return changed if choice.loop == run.choice(hardware).loop else None


def _rows_at_once(run: Run, batch: tuple[int, int]) -> Run:
    size, times = batch
    return replace(run, training=run.training.model_copy(update={"batch_size": size, "gradient_accumulation": times}))


def _answer(before: Run, after: Run, hardware: Hardware, needs: Estimate, instead: tuple[str, ...] = ()) -> Fitted:
    return Fitted(
        training=after.training,
        params=after.params.model_dump(),
        changes=tuple(_sentences(before, after)),
        fits=fits(needs, hardware, after.training),
        needs=needs.total,
        allowed=budget(hardware, before.training),
        limited=limited(hardware, before.training),
        instead=instead,
    )


def _sentences(before: Run, after: Run) -> Iterator[str]:
    old, new = before.training, after.training
    if new.batch_size != old.batch_size:
        rows = new.batch_size * new.gradient_accumulation
        yield (
            f"Micro-batch from {old.batch_size} to {new.batch_size} and Gradient accumulation from "
            f"{old.gradient_accumulation} to {new.gradient_accumulation}: still {rows:,} rows a step, fewer of them at "
            "once, so it learns the same, in more and smaller passes."
        )
    if new.recompute != old.recompute:
        yield "Recompute activations from Never to As needed: it learns the same, at most a third slower."
    if new.optimizer != old.optimizer:
        yield "Optimizer in 8 bits: a quarter of its memory, and it learns nearly the same."
    held = getattr(after.params, "base_weights", "full")
    if held != getattr(before.params, "base_weights", "full"):
        saved = {
            "fp8": "8-bit floats: half of their memory, nearly the same quality, and faster",
            "8-bit": "8 bits: half of their memory, nearly the same quality, somewhat slower",
            "4-bit": "4 bits: a quarter of their memory, nearly the same quality, somewhat slower",
        }[held]
        yield f"Base weights in {saved}."
    if new.max_length != old.max_length:
        cut = before.lengths and new.max_length < before.lengths.longest
        why = "of 100 rows about one is longer and loses its end" if cut else "the longest row has no more"
        yield f"Maximum length from {old.max_length:,} to {new.max_length:,} tokens: {why}."
    if after.rank != before.rank:
        alpha = getattr(after.params, "alpha", None)
        also = "" if alpha is None else f", and Alpha to {alpha} with it"
        yield f"Rank from {before.rank} to {after.rank}{also}: a smaller adapter, which learns a little less."
