"""The training child's speed: from its start to the first loss, a step, the answers, the whole run.

    python -m benchmarks.training graft-data/models/SmolLM2-135M-Instruct              # the first example's recipe
    python -m benchmarks.training FOLDER --cold --example support-desk --method qlora

Starts a real child on a run directory of its own, as the worker does, and reads its events. Without --cold the child
has its imports done before the clock starts, as it has when a worker hands it a run. On a busy machine compare the
fastest steps, not the medians. Prints figures and writes benchmarks/results/training-<device>.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import children
from jobs.data.columns import Mapping
from jobs.data.ingest import ingest
from jobs.data.store import ROWS
from jobs.events import Answers, AnyEvent, Metrics, Phase
from jobs.hardware import this_machine
from jobs.rundir import RunFiles
from jobs.service.examples import all_examples
from jobs.spec import BaseModelRef, DatasetRef, RunSpec, TrainingParams

RESULTS = Path(__file__).parent / "results"


def make_run(home: Path, base: Path, example: str, method: str, over: dict[str, Any]) -> RunFiles:
    """A run directory with the example's rows and recipe."""
    recipe = all_examples()[example]
    found = ingest(recipe.path, recipe.file, home, lambda share, text: None)
    spec = RunSpec(
        name=recipe.title,
        base_model=BaseModelRef(name=base.name, folder=base.resolve()),
        dataset=DatasetRef(
            name=recipe.file,
            fingerprint=found.fingerprint,
            rows=home / found.fingerprint / ROWS,
            mapping=Mapping.model_validate(found.mapping),
        ),
        task=recipe.task,
        method=method,
        method_params=recipe.method_params,
        training=TrainingParams(**recipe.training | over),
        prompts=recipe.prompts,
    )
    files = RunFiles(home / "run")
    files.directory.mkdir()
    files.spec.write_text(spec.model_dump_json(), encoding="utf-8")
    return files


def measure(files: RunFiles, cold: bool) -> dict[str, Any]:
    """Train it in a child, and time what it says."""
    run = children.train(files, cold=cold)
    told, started = run.events, run.began
    losses = [event for event in told if isinstance(event, Metrics) and _is_loss(event)]
    follows = list(itertools.pairwise(told))
    steps = [b.time - a.time for a, b in follows if _is_loss(a) and _is_loss(b)]  # nothing between but a step
    pauses = [b.time - a.time for a, b in follows if isinstance(b, Answers)]
    begins = next(event.time for event in told if isinstance(event, Phase) and event.text == "Training")
    return {
        "seconds": {
            "imports": None if run.imports is None else round(run.imports, 2),
            "start to first loss": round(losses[0].time - started, 2),
            "start to training": round(begins - started, 2),
            "step, median": round(statistics.median(steps), 3),
            "step, fastest": round(min(steps), 3),
            "answers": [round(pause, 2) for pause in pauses],
            "start to result": round(files.result.stat().st_mtime - started, 2),
        },
        "steps": run.result.step,
        "tokens per second, best": round(max(event.values["tokens_per_second"] for event in losses)),
        "loss": [round(losses[0].values["loss"], 4), round(losses[-1].values["loss"], 4)],
        "eval_loss": run.result.best_eval_loss,
        "peak memory, GB": round((run.result.peak_memory or 0) / 1e9, 2),
    }


def _is_loss(event: AnyEvent) -> bool:
    return isinstance(event, Metrics) and "loss" in event.values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="a base model folder")
    parser.add_argument("--cold", action="store_true", help="count the imports, too")
    parser.add_argument("--example", default=next(iter(all_examples())), choices=all_examples())
    parser.add_argument("--method", default="lora")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    options = parser.parse_args()
    over = {"max_steps": options.steps, "epochs": 100} if options.steps else {}
    with tempfile.TemporaryDirectory() as folder:
        files = make_run(Path(folder), options.base, options.example, options.method, over)
        figures = {
            "base": options.base.name,
            "example": options.example,
            "method": options.method,
            "start": "cold" if options.cold else "imports done",
            "hardware": this_machine().model_dump(include={"device", "name", "cores"}),
            **measure(files, options.cold),
        }
    print(json.dumps(figures, indent=2))
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"training-{figures['hardware']['device']}.json"
    target.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
