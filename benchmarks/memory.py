"""Predicted against measured peak memory: real training children on random weights of known shapes.

    python -m benchmarks.memory                          # on a GPU 38 settings, from 1 to 8 billion parameters; on a
                                                         # CPU those of small shapes
    python -m benchmarks.memory --shapes llama1b --seconds 450

Each setting is a whole run (jobs.training.child in its own process) of a few steps on rows of exactly the maximum
length, so that the peak is reached, or, where it says so, on documents of log-normal length. Prints a table and writes
benchmarks/results/memory-<device>.json after every run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.children import Children
from benchmarks.loops import SHAPES, WORDS, documents, make_model_apart, shape_of_model
from jobs.data.columns import Mapping, Shape
from jobs.data.readers import Row
from jobs.data.store import RowWriter
from jobs.hardware import Hardware, this_machine
from jobs.loops import choose
from jobs.memory.estimate import Planner
from jobs.memory.kept import Lengths
from jobs.methods import method
from jobs.rundir import RunFiles
from jobs.spec import BaseModelRef, DatasetRef, RunSpec, TrainingParams
from jobs.tasks import task

RESULTS = Path(__file__).parent / "results"
STEPS, VARIED_STEPS = 3, 12
_AT_ONCE = 4  # children that do their imports together


@dataclass(frozen=True)
class Setting:
    shape: str
    method: str
    batch: int
    length: int
    recompute: bool = False
    varied: bool = False  # documents of log-normal length, up to `length`
    loop: str = "auto"
    limit: float = 0  # GB: the run is to arrange itself within them
    held: str = "full"  # Base weights
    optimizer: str = "adamw"
    steps: int = 0  # or as many as usual
    validation: bool = False  # a tenth of the rows is kept aside, and read before the first step and in mid-run

    @property
    def words(self) -> str:
        more = [word for word, said in (("recompute", self.recompute), ("varied", self.varied)) if said]
        more += ["measured"] if self.validation else []
        more += [word for word in (self.loop, self.held, self.optimizer) if word not in ("auto", "full", "adamw")]
        more += [f"in {self.limit:g} GB"] if self.limit else []
        return f"{self.shape:>8} {self.method:>6} {self.batch:>3} x {self.length:<5} {' '.join(more):<17}"


# By shape, so that a model is read from the page cache; the dearest to read last.
GPU_GRID = (
    Setting("llama1b", "lora", 1, 512),
    Setting("llama1b", "lora", 8, 512),
    Setting("llama1b", "lora", 8, 2048),
    Setting("llama1b", "lora", 34, 2048, varied=True),
    Setting("llama1b", "lora", 3, 512, varied=True),
    Setting("llama1b", "lora", 4, 8192, recompute=True),
    Setting("llama1b", "qlora", 8, 1024),
    Setting("llama1b", "qlora", 16, 2048, recompute=True),
    Setting("llama1b", "dora", 4, 1024),
    Setting("llama1b", "dora", 4, 4096, recompute=True),
    Setting("llama1b", "full", 2, 512),
    Setting("llama1b", "full", 4, 2048, recompute=True),
    Setting("llama1b", "full", 2, 1024, optimizer="adamw-8bit"),
    Setting("llama1b", "lora", 8, 2048, held="fp8"),
    Setting("llama1b", "lora", 34, 2048, varied=True, limit=12),
    Setting("llama1b", "lora", 8, 512, loop="plain"),
    Setting("llama1b", "lora", 4, 4096, recompute=True, loop="plain"),
    Setting("llama3b", "lora", 4, 512),
    Setting("llama3b", "lora", 4, 2048),
    Setting("llama3b", "lora", 2, 8192, recompute=True),
    Setting("llama3b", "qlora", 4, 1024),
    Setting("llama3b", "dora", 2, 1024),
    Setting("llama3b", "lora", 17, 2048, varied=True),
    Setting("llama3b", "lora", 17, 2048, varied=True, limit=14),
    Setting("llama8b", "lora", 1, 512),
    Setting("llama8b", "lora", 4, 2048),
    Setting("llama8b", "lora", 1, 8192, recompute=True),
    Setting("llama8b", "lora", 17, 2048, varied=True),
    Setting("llama8b", "qlora", 4, 512),
    Setting("llama8b", "qlora", 4, 2048, recompute=True),
    Setting("llama8b", "dora", 2, 2048, recompute=True),
    Setting("llama8b", "lora", 4, 2048, held="fp8"),
    Setting("llama8b", "lora", 17, 2048, varied=True, limit=40),
    Setting("llama8b", "lora", 4, 2048, limit=18.6),
    Setting("llama8b", "qlora", 17, 2048, varied=True, limit=9.1),
    Setting("llama1b", "lora", 3, 512, varied=True, validation=True),
    Setting("llama1b", "lora", 34, 2048, varied=True, validation=True),
    Setting("llama8b", "qlora", 4, 512, validation=True),
)

# Memory that climbs with each new length is seen only after many steps.
CPU_GRID = (
    Setting("30m", "lora", 4, 256),
    Setting("30m", "lora", 24, 64, varied=True, steps=80),
    Setting("30m", "lora", 4, 512, varied=True, steps=40),
    Setting("30m", "lora", 24, 64, varied=True, steps=40, loop="plain"),
    Setting("30m", "lora", 16, 256, varied=True, steps=30, limit=1.1),
    Setting("30m", "full", 8, 256, varied=True),
    Setting("135m", "lora", 1, 256),
    Setting("135m", "lora", 4, 256),
    Setting("135m", "lora", 4, 512),
    Setting("135m", "lora", 4, 512, recompute=True),
    Setting("135m", "lora", 16, 128, varied=True, steps=40),
    Setting("135m", "lora", 4, 256, loop="plain"),
    Setting("135m", "qlora", 4, 256),
    Setting("135m", "dora", 2, 256),
    Setting("135m", "dora", 2, 256, recompute=True),
    Setting("135m", "full", 1, 256),
    Setting("135m", "full", 2, 256, optimizer="adamw-8bit"),
    Setting("135m", "lora", 4, 256, varied=True, steps=40, validation=True),
    Setting("135m", "lora", 4, 256, varied=True, steps=40, loop="plain", validation=True),
    Setting("135m", "full", 4, 256, varied=True, optimizer="adamw-8bit", validation=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="only these")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further run after so many")
    parser.add_argument("--models", type=Path, help="where models are kept from one call to the next")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument(
        "--again", type=Path, metavar="JSON", help="run nothing; predict once more what is stored there"
    )
    options = parser.parse_args()
    if options.again:
        stored = predicted_again(json.loads(options.again.read_text(encoding="utf-8")))
        options.again.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        print(summary(stored["results"]))
        return
    began = time.monotonic()
    hardware = this_machine()
    out = options.out or RESULTS / f"memory-{hardware.device}.json"
    out.parent.mkdir(exist_ok=True)
    results: list[dict[str, Any]] = []
    at_once = _AT_ONCE if hardware.device == "cuda" else 1
    with tempfile.TemporaryDirectory() as scratch, Children(at_once) as children:
        for setting in GPU_GRID if hardware.device == "cuda" else CPU_GRID:
            if options.shapes and setting.shape not in options.shapes:
                continue
            if time.monotonic() - began > options.seconds:
                print(f"{setting.words}  not begun: the time is up")
                continue
            model = make_model_apart(setting.shape, options.models or Path(scratch))
            folder = Path(scratch) / "run"
            results.append({**asdict(setting), **measure(children, model, folder, setting)})
            shutil.rmtree(folder)
            print(line(setting, results[-1]), flush=True)
            out.write_text(json.dumps({"hardware": hardware.model_dump(), "results": results}, indent=1) + "\n")
    print(summary(results))


def measure(children: Children, model: Path, folder: Path, setting: Setting) -> dict[str, Any]:
    """One run's predicted and measured peak, in bytes."""
    folder.mkdir()
    training = training_of(setting)
    spec = RunSpec(
        name="memory",
        base_model=BaseModelRef(name=model.name, folder=model.resolve()),
        dataset=DatasetRef(
            name="words",
            fingerprint="0",
            rows=write_text_rows(folder / "rows.parquet", rows(setting, setting.batch * training.max_steps)),
            mapping=Mapping(shape=Shape.TEXT, columns={"text": "text"}),
        ),
        task="text",
        method=setting.method,
        method_params=params_of(setting).model_dump(),
        training=training,
    )
    files = RunFiles(folder)
    files.spec.write_text(spec.model_dump_json(), encoding="utf-8")
    began = time.monotonic()
    result = children.train([files])[0].result
    return {
        **predicted(setting, this_machine()),
        "measured": result.peak_memory if result.state == "completed" else None,
        "loaded": children_log(files),
        "failed": result.reason if result.state != "completed" else None,
        "seconds": round(time.monotonic() - began, 1),
    }


def training_of(setting: Setting) -> TrainingParams:
    return TrainingParams(
        max_steps=setting.steps or (VARIED_STEPS if setting.varied else STEPS),
        batch_size=setting.batch,
        max_length=setting.length,
        recompute="on" if setting.recompute else "auto",
        memory_limit_gb=setting.limit,
        optimizer=setting.optimizer,  # type: ignore[arg-type]
        validation_percent=10 if setting.validation else 0,
        evaluations=2 if setting.validation else 1,
        loop="plain" if setting.loop == "plain" else "auto",
    )


def params_of(setting: Setting) -> Any:
    held = {"base_weights": setting.held} if setting.held != "full" else {}
    return type(method(setting.method)).Params(**held)  # type: ignore[arg-type]


def predicted(setting: Setting, hardware: Hardware) -> dict[str, Any]:
    """What the page would say before Start."""
    chosen, params, training = method(setting.method), params_of(setting), training_of(setting)
    shape = shape_of_model(setting.shape)
    loop = choose(training, task("text"), chosen, params, shape, hardware).loop
    counts = [min(len(text), setting.length) for text in rows(setting, setting.batch * training.max_steps)]
    lengths = Lengths(
        longest=max(counts), mean=statistics.fmean(counts), spread=statistics.pstdev(counts), rows=len(counts)
    )
    needs = Planner(shape, chosen, params, training, hardware, lengths, loop=loop).planned()[1]
    return {"loop": loop, "predicted": needs.total, "parts": needs.model_dump()}


def predicted_again(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored results with what the estimate says now."""
    hardware = Hardware(**stored["hardware"])
    names = {field.name for field in fields(Setting)}
    again = [
        {**each, **predicted(Setting(**{name: each[name] for name in names if name in each}), hardware)}
        for each in stored["results"]
    ]
    return {**stored, "results": again}


def children_log(files: RunFiles) -> str | None:
    """What the run's log says of the memory that loading took."""
    return next((text for text in files.log.read_text().splitlines() if "Loaded:" in text), None)


def rows(setting: Setting, count: int) -> list[list[str]]:
    """Texts as lists of words, each a token: longer than the setting's length, or of many lengths."""
    if setting.varied:
        return [[f"w{token}" for token in tokens] for tokens in documents(count, setting.length)]
    return [[f"w{4 + (row + place) % (WORDS - 4)}" for place in range(setting.length + 8)] for row in range(count)]


def write_text_rows(path: Path, texts: list[list[str]]) -> Path:
    with RowWriter(path) as writer:
        values = [{"text": " ".join(text)} for text in texts]
        writer.add([Row(number, each, json.dumps(each)) for number, each in enumerate(values, start=1)])
    return path


def line(setting: Setting, result: dict[str, Any]) -> str:
    if result["measured"] is None:
        return f"{setting.words}  failed: {result['failed']}"
    predicted, measured = result["predicted"] / 1e9, result["measured"] / 1e9
    return (
        f"{setting.words} {result['loop']:<6}  predicted {predicted:6.2f} GB  measured {measured:6.2f} GB  "
        f"{100 * (predicted / measured - 1):+5.1f} %  ({result['seconds']} s)"
    )


def summary(results: list[dict[str, Any]]) -> str:
    """How many lie within what was asked for: 10 % of the measured peak, and never 3 % under it."""
    off = [result["predicted"] / result["measured"] - 1 for result in results if result["measured"]]
    if not off:
        return "Nothing was measured."
    within = sum(-0.03 <= each <= 0.1 for each in off)
    return f"{within} of {len(off)} from 3 % under to 10 % over; {100 * min(off):+.1f} % to {100 * max(off):+.1f} %"


if __name__ == "__main__":
    main()
