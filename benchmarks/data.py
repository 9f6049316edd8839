"""A large dataset, from the upload to the trainer's rows: how quickly each is done, and in how much memory.

    python -m benchmarks.data graft-data/models/SmolLM2-135M-Instruct               # 1,000,000 rows, 1 GB of JSONL
    python -m benchmarks.data FOLDER --rows 50000 --formats jsonl csv json parquet

Writes a file of conversations (sentences of Python's own documentation, shuffled) and does with it what the app does,
in the app's own processes: `jobs.data.ingest` reads and checks it, `jobs.data.child` renders and tokenises every row,
and a process of its own prepares the rows as the training child does, and another one takes them from the cache. FOLDER
is a base model whose tokenizer is used. Rates per core are per second of processor time. Prints figures and writes
benchmarks/results/data.json.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import psutil

from jobs.data.columns import Mapping, Shape
from jobs.data.ingest import Ingested
from jobs.data.preflight import Preflight
from jobs.data.store import ROWS, read_rows
from jobs.hardware import peak_resident, this_machine
from jobs.rpc import RpcClient, child_environment
from jobs.spec import BaseModelRef, DatasetRef, RunSpec

RESULTS = Path(__file__).parent / "results"
LENGTH = 2048  # tokens: the maximum length that rows are cut to
CHAT = Mapping(shape=Shape.MESSAGES, columns={"messages": "messages"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a base model's folder")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", choices=("jsonl", "json", "csv", "parquet"), default=["jsonl", "csv"])
    parser.add_argument("--scratch", type=Path, help="where there is room for three times the data")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)  # the process that prepares a run's rows
    options = parser.parse_args()
    if options.prepare:
        print(json.dumps(prepare(options.prepare, options.model)))
        return
    report: dict[str, Any] = {
        "machine": {"name": this_machine().name, "cores": psutil.cpu_count()},
        "model": options.model.name,
        "rows": options.rows,
        "load_average_before": [round(load, 1) for load in psutil.getloadavg()],  # other work on the machine
    }
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        home = Path(scratch)
        (home / "datasets").mkdir()
        chat = None
        for kind in options.formats:
            path = write_file(home / f"data.{kind}", options.rows)
            found, measured = check_file(path, home)
            report[f"checked, {kind}"] = measured
            say(f"{kind}, checked", measured)
            path.unlink()
            if kind != "csv":
                chat = home / "datasets" / found.fingerprint / ROWS
        if chat:
            report["tokenised"] = tokenise(chat, options.model, home)
            say("tokenised", report["tokenised"])
            for which in ("prepared", "prepared again"):  # the second time from the cache that the first one left
                report[which] = run(chat, options)
                say(which, report[which])
    report["load_average_after"] = [round(load, 1) for load in psutil.getloadavg()]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "data.json").write_text(json.dumps(report, indent=2) + "\n")


def rows_of(count: int) -> Iterator[list[dict[str, str]]]:
    """Conversations of one question and one answer, about 1 KB each and all different."""
    text = re.sub(r"\s+", " ", " ".join(topics.values()))
    sentences = [sentence for sentence in re.split(r"(?<=[.!?]) ", text) if 20 < len(sentence) < 400]
    chosen = random.Random(0)
    for number in range(count):
        question = f"{number}: {' '.join(chosen.choices(sentences, k=2))}"
        answer = " ".join(chosen.choices(sentences, k=chosen.randint(2, 10)))
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_file(path: Path, count: int) -> Path:
    rows = rows_of(count)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        with parquet.ParquetWriter(path, pyarrow.Table.from_pylist([{"messages": next(rows_of(1))}]).schema) as file:
            while batch := [{"messages": turns} for turns in itertools.islice(rows, 10_000)]:
                file.write_table(pyarrow.Table.from_pylist(batch))
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.writer(file)
            writer.writerow(("question", "answer"))
            writer.writerows([turn["content"] for turn in turns] for turns in rows)
        elif path.suffix == ".json":
            file.write("[\n")
            for number, turns in enumerate(rows):
                file.write((",\n" if number else "") + json.dumps({"messages": turns}))
            file.write("\n]\n")
        else:
            file.writelines(json.dumps({"messages": turns}) + "\n" for turns in rows)
    return path


class Watch:
    """What a process has used, asked again and again while it works."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before = self._cpu()
        self.cpu = 0.0
        self.peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _follow(self) -> None:
        while not self._end.wait(0.1):
            self._look()

    def _look(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        self.peak = max([self.peak, *(int(kb) * 1024 for kb in re.findall(r"VmHWM:\s+(\d+)", status))])
        self.cpu = self._cpu() - self._before

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        self._look()


def check_file(path: Path, home: Path) -> tuple[Ingested, dict[str, Any]]:
    """As `Datasets.add` has it read: the progress messages, then the summary."""
    client = RpcClient("jobs.data.ingest", home / "ingest.txt")
    client.start()
    assert client.pid
    watch = Watch(client.pid)
    try:
        *told, last = client.stream("ingest", path=str(path), filename=path.name, datasets=str(home / "datasets"))
    finally:
        watch.stop()
        client.close()
    found = Ingested.model_validate(last["summary"])
    if found.bad_rows:
        raise SystemExit(f"{found.bad_rows} rows of {path.name} could not be read")
    megabytes = found.size_bytes / 1e6
    return found, {
        "rows": found.rows,
        "megabytes": round(megabytes),
        "seconds": round(found.seconds, 1),
        "megabytes a second": round(megabytes / found.seconds, 1),
        "megabytes a second of a core": round(megabytes / watch.cpu, 1),
        "peak memory, MB": round(found.peak_memory / 1e6),
        "progress messages": len(told),
    }


def tokenise(rows: Path, model: Path, home: Path) -> dict[str, Any]:
    """As `Datasets.preflight` has it done."""
    question: dict[str, Any] = {
        "rows": str(rows),
        "mapping": CHAT.model_dump(mode="json"),
        "task": "chat",
        "params": {},
        "max_length": LENGTH,
        "model": model.name,
        "source": str(model.resolve()),
        "revision": None,
        "stamp": "",
    }
    client = RpcClient("jobs.data.child", home / "tokens.txt")
    client.call("warm", **question)
    assert client.pid
    watch = Watch(client.pid)
    try:
        *told, last = client.stream("preflight", **question)
    finally:
        watch.stop()
        client.close()
    report = Preflight.model_validate(last["report"])
    if report.bad_rows or report.truncated_rows:
        raise SystemExit(f"{report.bad_rows} rows are bad, {report.truncated_rows} cut: the figures would be too good")
    return {
        "rows": report.rows,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 1),
        "million tokens a second": round(report.tokens / report.seconds / 1e6, 2),
        "million tokens a second of a core": round(report.tokens / watch.cpu / 1e6, 2),
        "rows a second": round(report.rows / report.seconds),
        "peak memory, MB": round(watch.peak / 1e6),
        "progress messages": len(told),
    }


def run(rows: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`prepare` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.data", str(options.model), "--prepare", str(rows)]
    done = subprocess.run(command, env=child_environment(), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(rows: Path, model: Path) -> dict[str, Any]:
    """What a training child does with the rows before it loads the model, without importing torch."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers import AutoTokenizer

    from jobs.tasks import task
    from jobs.training.cache import RowCache
    from jobs.training.data import encode_rows, epoch_order, split

    spec = RunSpec(
        name="data",
        base_model=BaseModelRef(name=model.name, folder=model.resolve()),
        dataset=DatasetRef(name="data", fingerprint="0", rows=rows, mapping=CHAT),
        task="chat",
        method="lora",
    )
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"max_length": LENGTH})})
    tokenizer = AutoTokenizer.from_pretrained(model)
    before = peak_resident()
    began, used = time.monotonic(), time.process_time()
    cache = RowCache.of(spec, task("chat"), tokenizer)
    kept = cache.read()
    made = kept or encode_rows(spec, task("chat"), tokenizer, read_rows(rows), folder=rows.parent)
    if not kept:
        cache.keep(*made)
    found, _ = made
    seconds, cpu = time.monotonic() - began, time.process_time() - used
    train, validation = split(found, spec.training.validation_rows(len(found)), seed=0)
    looked = time.monotonic()
    tokens = sum(len(train[place]) for place in epoch_order(len(train), 0, 0)[:100_000])
    return {
        "rows": len(found),
        "seconds": round(seconds, 2),
        "rows a second of a core": round(len(found) / cpu),
        "validation rows": len(validation),
        "seconds to split them": round(looked - began - seconds, 1),
        "microseconds to take a row at random": round(1e6 * (time.monotonic() - looked) / min(100_000, len(train)), 1),
        "tokens in a row": round(tokens / min(100_000, len(train))),
        "peak memory, MB": round(peak_resident() / 1e6),
        "of it before the first row, MB": round(before / 1e6),
    }


def say(what: str, measured: dict[str, Any]) -> None:
    print(f"{what}: " + ", ".join(f"{name} {value:,}" for name, value in measured.items()), flush=True)


if __name__ == "__main__":
    main()
