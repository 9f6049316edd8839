"""A run that says what a test tells it to: a process that stands where the trainer would, under the real worker.

The test writes orders, a JSON object a line; the feed appends events to its run's events.jsonl and answers with the
time it did. Used by the live tests and benchmarks/live.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert

from jobs.data.columns import Mapping, Shape
from jobs.events import Answers, EventLog, Metrics, Phase, PromptAnswer
from jobs.files import write_whole
from jobs.process import identify
from jobs.result import Result
from jobs.rundir import RunFiles
from jobs.shape import ModelShape
from jobs.spec import BaseModelRef, DatasetRef, RunSpec
from storage.db import write
from storage.files import Home
from storage.states import RunState
from storage.tables import BaseModel, Dataset, Metric, Run, now

ROOT = Path(__file__).resolve().parents[1]
MAPPING = Mapping(shape=Shape.PROMPT, columns={"prompt": "prompt", "completion": "completion"})
SHAPE = ModelShape(
    architecture="LlamaForCausalLM", model_type="llama", hidden_size=64, intermediate_size=128, layers=2, heads=4,
    kv_heads=2, head_dim=16, vocab_size=512, max_length=512, parameters=100_000, embedding_parameters=32_768,
    dtype="float32", linears=(), has_chat_template=True,
)  # fmt: skip


def spec(name: str = "Pirate") -> RunSpec:
    return RunSpec(
        name=name,
        base_model=BaseModelRef(name="Tiny", folder=Path("tiny")),
        dataset=DatasetRef(name="Ships", fingerprint="f" * 64, rows=Path("rows.parquet"), mapping=MAPPING),
        task="chat",
        method="lora",
        prompts=("Where is the ship?",),
        predicted_memory=2_000_000_000,
    )


def no_starter(home: Home) -> None:
    """Keep a server from converting the starter model: minutes of a core that measure nothing here."""
    from jobs.starter import NAME

    (home.models / NAME).mkdir(parents=True, exist_ok=True)


def fill(engine: Engine) -> None:
    """A base model and a dataset for runs to refer to, both with id 1."""
    with write(engine) as session:
        session.add(BaseModel(name="Tiny", source="folder", location="tiny", shape=SHAPE.model_dump(mode="json")))
        session.add(
            Dataset(
                fingerprint="f" * 64, name="Ships", filename="ships.jsonl", format="jsonl", size_bytes=1, rows=9,
                columns=["prompt", "completion"], mapping=MAPPING.model_dump(mode="json"),
                detection={"text": "Prompts and completions.", "sure": True},
            )
        )  # fmt: skip


def add_run(engine: Engine, state: RunState, name: str = "Pirate", **values: Any) -> int:
    """A run's row as the worker would have written it."""
    with write(engine) as session:
        run = Run(name=name, state=state, base_model_id=1, dataset_id=1, spec=spec(name).model_dump(mode="json"))
        run.predicted_memory = run.spec["predicted_memory"]
        if state != RunState.QUEUED:
            run.started_at = run.attempt_at = now()
        for key, value in values.items():
            setattr(run, key, value)
        session.add(run)
        session.flush()
        return run.id


def add_history(engine: Engine, run_id: int, rows: list[dict[str, Any]]) -> None:
    """Metrics of the past: dictionaries of step, name and value."""
    with write(engine) as session:
        session.execute(insert(Metric), [{"run_id": run_id, "time": time.time(), **row} for row in rows])


class Feed:
    """The process, from the test's side. `say` returns when the event is in the file, with the time it was written."""

    def __init__(self, home: Home, run_id: int) -> None:
        directory = home.run(run_id)
        directory.mkdir(parents=True, exist_ok=True)
        RunFiles(directory).spec.write_text(spec().model_dump_json())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.feed", str(directory)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._answer()

    def metrics(self, step: int, **values: float) -> float:
        return self.say(metrics={"step": step, "values": values, "eta_seconds": 60.0})

    def say(self, **order: Any) -> float:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> float:
        assert self._process.stdout
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)


def main() -> None:
    files = RunFiles(Path(sys.argv[1]))
    identity = identify()
    assert identity
    identity.write(files.process)
    events = EventLog(files.events)
    print(time.time(), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        at = time.time()
        if metrics := order.get("metrics"):
            events.append(Metrics(time=at, **metrics))
        if phase := order.get("phase"):
            events.append(Phase(text=phase))
        if answers := order.get("answers"):
            events.append(Answers(step=answers["step"], answers=tuple(PromptAnswer(**a) for a in answers["answers"])))
        if text := order.get("log"):
            with files.log.open("a") as log:
                log.write(text)
        if result := order.get("result"):
            write_whole(files.result, Result(**result).model_dump_json())
        print(at, flush=True)


if __name__ == "__main__":
    main()
