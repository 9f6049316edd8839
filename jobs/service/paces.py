"""How long a run will take, before Start: from the catalog's earlier runs of the same model in the same loop here."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine

from jobs.hardware import Hardware
from jobs.pace import Earlier, alike, predicted_seconds
from storage import runs as rows
from storage.db import read

_RUNS = 5  # the newest of those most alike


class Paces:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[int, int], Earlier] = {}  # by run and attempt: what has ended stays as it is

    def seconds(
        self,
        base_model_id: int,
        loop: str,
        hardware: Hardware,
        method: str,
        settings: dict[str, Any],
        tokens: float,
        slowdown: float,
    ) -> tuple[float, float] | None:
        """The least and the most of a run over so many tokens, as those tell that are the most alike: a run takes the
        longer the more else the machine has to do. None where no earlier one is like it. `settings`: as RunSpec holds
        them; `slowdown`: jobs.memory.estimate.Planner's."""
        told: list[float] = []
        closest = 0
        training = settings["training"]
        evaluations = training["evaluations"] if training["validation_percent"] else 0
        with read(self._engine) as session:
            found = [
                run
                for run in rows.ended_of(session, base_model_id)
                if run.hardware
                and run.hardware.get("loop") == loop
                and run.hardware.get("name") == hardware.name
                and run.spec["method"] == method
            ]
            wanted = _kind(settings)
            likeness = {run.id: alike(wanted, _kind(run.spec)) for run in found}
            for run in sorted(found, key=lambda each: (likeness[each.id], each.id), reverse=True):
                if told and (len(told) == _RUNS or likeness[run.id] < closest):
                    break
                key = (run.id, run.attempt)
                if key not in self._known:
                    rates = rows.metric(session, run.id, "tokens_per_second")
                    self._known[key] = Earlier(
                        times=tuple(time for _, time in rates),
                        rates=tuple(rate for rate, _ in rates),
                        evaluated=tuple(time for _, time in rows.metric(session, run.id, "eval_loss")),
                        steps=run.step,
                        seconds=run.trained_seconds,
                        resumed=run.attempt_at.timestamp() if run.attempt > 1 and run.attempt_at else None,
                    )
                slower = slowdown / (run.hardware or {}).get("slowdown", slowdown)  # older runs do not tell theirs
                seconds = predicted_seconds(self._known[key], tokens, evaluations, slower)
                if seconds is not None:
                    told.append(seconds)
                    closest = likeness[run.id]
        return (min(told), max(told)) if told else None


def _kind(spec: dict[str, Any]) -> tuple[object, ...]:
    """What decides a run's speed, the weightiest first."""
    training, params = spec["training"], spec["method_params"]
    return (
        params.get("base_weights", "full"),
        {True: "on", False: "auto"}.get(training.get("recompute"), training.get("recompute", "auto")),
        training.get("memory_limit_gb") or 0,  # with little memory layers are computed twice
        training.get("batch_size"),
        training.get("max_length"),
        params.get("targets"),
        spec["task"],
        bool(training.get("validation_percent")),
    )
