"""The training child on a tiny model: real processes where the process matters, this one where the training does."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs import process
from jobs.data.columns import Mapping, Shape
from jobs.events import Answers, Checkpoint, Metrics, Phase, Started
from jobs.spec import BaseModelRef, DatasetRef, TrainingParams
from jobs.training.data import Row, epoch_order, split
from jobs.training.schedule import evaluation_steps, rate
from tests import rundirs
from tests.rundirs import QUESTIONS, events, make_run, series, start_child, start_spare, train_here, wait_for

np = pytest.importorskip("numpy")


def test_a_waiting_child_trains_what_it_is_handed_and_needs_nobody(tmp_path: Path, tiny_llama: Path) -> None:
    files = make_run(tmp_path / "run", tiny_llama, prompts=("Where is ship 3?", "Who are you?"))
    child, unused = start_spare(), start_spare()
    assert child.stdin and child.stdout and unused.stdin and unused.stdout
    unused.stdin.close()  # its parent went before it had work
    assert child.stdout.readline() == b"ready\n"
    child.stdout.close()
    child.stdin.write(json.dumps({"directory": str(files.directory), "attempt": 3}).encode() + b"\n")
    child.stdin.close()
    wait_for(files.process.exists)
    identity = process.read_identity(files.process)
    assert identity and identity.pid == child.pid
    os.kill(child.pid, signal.SIGHUP)
    assert child.wait(300) == 0
    assert (unused.wait(60), unused.stdout.read()) == (0, b"ready\n")

    end = rundirs.result(files)
    assert (end.state, end.reason, end.step) == ("completed", None, 12)
    assert end.trainable_parameters > 0
    assert end.peak_memory and end.peak_memory > 100_000_000
    told = events(files)
    started = next(event for event in told if isinstance(event, Started))
    assert (started.attempt, started.step, started.total_steps) == (3, 0, 12)
    assert (started.train_rows, started.validation_rows, started.left_out_rows) == (22, 2, 0)
    assert started.hardware["dtype"] == "float32"
    assert started.packages["torch"]
    assert [event.text for event in told if isinstance(event, Phase)][:3] == [
        "Loading the tokenizer",
        "Preparing 24 rows",
        "Loading Tiny",
    ]
    loss = series(files, "loss")
    assert list(loss) == list(range(1, 13))
    assert loss[12] < loss[1] - 0.3
    assert all(set(series(files, name)) == set(loss) for name in ("learning_rate", "grad_norm", "memory"))
    assert all(value > 0 for value in series(files, "tokens_per_second").values())
    assert list(series(files, "eval_loss")) == [0, 6, 12]
    assert [event.step for event in told if isinstance(event, Checkpoint)] == [6, 12]
    answers = [event for event in told if isinstance(event, Answers)]
    assert [event.step for event in answers] == [6, 12]
    assert [answer.prompt for answer in answers[0].answers] == ["Where is ship 3?", "Who are you?"]
    assert [a.base for a in answers[0].answers] == [a.base for a in answers[1].answers]
    assert "Step 12 of 12" in files.log.read_text()


def test_stop_finishes_the_step_and_saves_a_usable_adapter(tmp_path: Path, tiny_llama: Path) -> None:
    by_file, by_signal = (
        make_run(tmp_path / by, tiny_llama, training={"epochs": 100, "evaluations": 1}, prompts=("Where is ship 3?",))
        for by in ("file", "signal")
    )
    by_file.stop.touch()  # an earlier attempt's
    children = [start_child(by_file), start_child(by_signal)]
    for files in (by_file, by_signal):
        wait_for(lambda files=files: files.events.exists() and len(series(files, "loss")) >= 3)  # type: ignore[misc]
    by_file.stop.touch()
    children[1].send_signal(signal.SIGTERM)
    for child, files in zip(children, (by_file, by_signal), strict=True):
        assert child.wait(300) == 0
        end = rundirs.result(files)
        assert end.state == "stopped"
        assert end.reason == f"Stopped on request after step {end.step}."
        assert end.adapter_step == end.step == max(series(files, "loss"))
        assert (files.adapter / "adapter_model.safetensors").stat().st_size > 1_000
        assert not any(isinstance(event, Answers) for event in events(files)), "a stop does not wait for answers"


def test_a_killed_trainer_resumes_to_the_same_losses(tmp_path: Path, tiny_llama: Path) -> None:
    settings = {"epochs": 8, "evaluations": 5, "gradient_accumulation": 2, "batch_size": 2, "early_stop": 0}
    method = {"r": 4, "dropout": 0.2}  # dropout: the random state must come back, too
    killed = make_run(tmp_path / "killed", tiny_llama, training=settings, method_params=method)
    child = start_child(killed)
    whole = make_run(tmp_path / "whole", tiny_llama, training=settings, method_params=method)
    assert train_here(whole).step == 48
    wait_for(lambda: killed.events.exists() and max(series(killed, "loss"), default=0) >= 11)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not killed.result.exists()
    half_written = killed.checkpoints / ".checkpoint-99.1.tmp"
    half_written.mkdir()

    end = train_here(killed, attempt=2)

    assert end.state == "completed"
    assert not half_written.exists()
    second = [event for event in events(killed) if isinstance(event, Started)][1]
    assert (second.attempt, second.step % 10) == (2, 0)
    assert 10 <= second.step < 48
    assert series(killed, "loss") == pytest.approx(series(whole, "loss"), rel=1e-5)
    assert series(killed, "eval_loss") == pytest.approx(series(whole, "eval_loss"), rel=1e-5)
    assert end.best_step == rundirs.result(whole).best_step


def test_the_same_seed_is_the_same_run_and_another_seed_another(tmp_path: Path, tiny_llama: Path) -> None:
    runs = [
        make_run(tmp_path / str(number), tiny_llama, training={"max_steps": 4, "seed": seed})
        for number, seed in enumerate((7, 7, 8))
    ]
    for files in runs:
        assert train_here(files).state == "completed"
    first, same, other = (series(files, "loss") for files in runs)
    assert first == same
    assert first[1] != other[1]


def test_early_stop_ends_the_run_and_keeps_the_best(tmp_path: Path, tiny_llama: Path) -> None:
    # Answers at random: what helps on the rows trained on soon hurts on those kept aside.
    rows = [{"prompt": f"Number {n}?", "completion": f"{n * 7919 % 1000:03d}"} for n in range(16)]
    files = make_run(
        tmp_path / "run",
        tiny_llama,
        rows,
        training={"learning_rate": 5e-2, "epochs": 60, "evaluations": 60, "early_stop": 2, "validation_percent": 25},
        method_params={"r": 16},
    )
    end = train_here(files)
    losses = series(files, "eval_loss")
    assert end.state == "completed"
    assert end.reason and "Ended early after step" in end.reason
    assert end.step < 180
    assert end.best_step == end.adapter_step == min(losses, key=lambda step: losses[step])
    assert end.best_eval_loss == min(losses.values())
    assert list(losses)[-1] == end.step
    assert list(losses)[-3] == end.best_step
    kept = sorted(path.name for path in files.checkpoints.iterdir())
    assert kept == sorted({f"checkpoint-{end.best_step}", f"checkpoint-{end.step}"})
    best = files.checkpoints / f"checkpoint-{end.best_step}" / "adapter" / "adapter_model.safetensors"
    assert (files.adapter / "adapter_model.safetensors").read_bytes() == best.read_bytes()


def test_the_curves_begin_with_the_untrained_model_which_is_never_the_best(tmp_path: Path, tiny_llama: Path) -> None:
    # A rate so high that every step makes it worse.
    training = {"learning_rate": 1.0, "epochs": 2, "evaluations": 4, "early_stop": 2, "validation_percent": 25}
    files = make_run(tmp_path / "run", tiny_llama, training=training, method="full", method_params={})
    end = train_here(files)
    losses = series(files, "eval_loss")
    assert min(losses, key=lambda step: losses[step]) == 0
    assert series(files, "perplexity").keys() == losses.keys() and 0 not in series(files, "loss")
    after = {step: loss for step, loss in losses.items() if step}
    assert end.best_step == end.adapter_step == min(after, key=lambda step: after[step])
    assert end.best_eval_loss == min(after.values())
    # Two evaluations without a fall end it; that before the first step is none of them.
    first = min(after)
    assert end.step == (3 * first if after[first] < after[2 * first] else end.step) > first
    phases = [event.text for event in events(files) if isinstance(event, Phase)]
    assert phases.count("Measuring the untrained model on 6 rows") == 1


def test_the_untrained_model_is_measured_once_and_not_where_that_costs_much(tmp_path: Path, tiny_llama: Path) -> None:
    files = make_run(tmp_path / "run", tiny_llama, training={"max_steps": 2})
    assert train_here(files).state == "completed"
    longer = json.loads(files.spec.read_text())
    longer["training"]["max_steps"] = 4
    files.spec.write_text(json.dumps(longer))
    assert train_here(files, attempt=2).state == "completed"
    told = [event.step for event in events(files) if isinstance(event, Metrics) and "eval_loss" in event.values]
    assert told == [0, 1, 2, 4]
    # Twelve rows to read for four that are trained on.
    brief = make_run(tmp_path / "brief", tiny_llama, training={"max_steps": 1, "validation_percent": 50})
    assert train_here(brief).state == "completed"
    assert list(series(brief, "eval_loss")) == [1]


def test_without_validation_the_last_step_is_the_adapter(tmp_path: Path, tiny_llama: Path) -> None:
    files = make_run(tmp_path / "run", tiny_llama, training={"validation_percent": 0, "recompute": "on"})
    end = train_here(files)
    assert (end.state, end.best_step, end.adapter_step) == ("completed", None, 12)
    assert series(files, "eval_loss") == {}
    assert series(files, "loss")[12] < series(files, "loss")[1]


def test_slow_steps_are_saved_by_time(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.training.monitor.CHECKPOINT_SECONDS", 0.0)
    files = make_run(tmp_path / "run", tiny_llama, training={"max_steps": 3, "evaluations": 1})
    train_here(files)
    told = [event for event in events(files) if isinstance(event, Checkpoint)]
    assert [event.step for event in told] == [1, 2, 3]
    assert [event.best for event in told] == [False, False, True]


def test_a_bad_row_fails_the_run_by_number_unless_it_is_left_out(tmp_path: Path, tiny_llama: Path) -> None:
    rows = [*QUESTIONS[:4], {"prompt": "no answer"}, *QUESTIONS[4:8], "this is not JSON"]
    failed = make_run(tmp_path / "failed", tiny_llama, rows)
    end = train_here(failed)
    assert end.state == "failed"
    assert end.reason and end.reason.startswith("Row 5 cannot be used: it has no 'completion'.")
    assert "Traceback" not in end.reason

    files = make_run(tmp_path / "left", tiny_llama, rows, training={"leave_out_bad_rows": True, "max_steps": 1})
    assert train_here(files).state == "completed"
    started = next(event for event in events(files) if isinstance(event, Started))
    assert (started.train_rows, started.validation_rows, started.left_out_rows) == (7, 1, 2)


def test_a_loss_that_is_not_a_number_ends_the_run_with_the_best_adapter_so_far(
    tmp_path: Path, tiny_llama: Path
) -> None:
    from jobs.training.loop import Job
    from jobs.training.monitor import Monitor, StopRequest
    from jobs.training.run import Attempt

    def blows_up(job: Job, monitor: Monitor) -> None:
        for step in range(1, job.total_steps + 1):
            loss = 1.0 if step < 9 else float("nan")
            monitor.step_done(
                step, loss=loss, learning_rate=1.0, grad_norm=None, tokens=8, save_state=lambda folder: None
            )

    files = make_run(tmp_path / "run", tiny_llama)
    end = Attempt(files, 1, StopRequest(files.stop), blows_up).run()
    assert (end.state, end.step, end.adapter_step) == ("failed", 9, 6)
    assert end.reason and end.reason.startswith("The loss became not-a-number at step 9")
    assert "Lower the learning rate" in end.reason
    assert (files.adapter / "adapter_config.json").is_file()


def test_a_stop_before_the_first_step_of_a_resumed_run_keeps_what_is_there(tmp_path: Path, tiny_llama: Path) -> None:
    files = make_run(tmp_path / "run", tiny_llama, training={"max_steps": 2})
    assert train_here(files).state == "completed"
    longer = json.loads(files.spec.read_text())
    longer["training"]["max_steps"] = 4
    files.spec.write_text(json.dumps(longer))
    files.stop.touch()
    end = train_here(files, attempt=2)
    assert (end.state, end.adapter_step) == ("stopped", 2)
    assert end.reason == "Stopped on request before a step was taken."


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Only Linux tells what is mapped")
def test_on_a_cpu_weights_leave_the_model_s_file(tmp_path: Path, tiny_llama: Path) -> None:
    import torch

    from jobs.training import load

    folder = tmp_path / "held"
    shutil.copytree(tiny_llama, folder)
    cpu = load.Device(torch.device("cpu"), torch.float32)
    model, _ = load.load_model(BaseModelRef(name="Tiny", folder=folder), "AutoModelForCausalLM", {}, None, cpu)
    assert str(folder) in Path("/proc/self/maps").read_text(encoding="utf-8")
    load.leave_files(model)
    assert model.get_output_embeddings().weight.isfinite().all()
    assert str(folder) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_base_model_that_is_gone_is_named(tmp_path: Path) -> None:
    files = make_run(tmp_path / "run", tmp_path / "gone")
    end = train_here(files)
    assert end.state == "failed"
    assert end.reason and end.reason.startswith("The files of Tiny are no longer at ")


def test_a_hub_that_does_not_answer_is_named(tmp_path: Path, tiny_llama: Path) -> None:
    files = make_run(
        tmp_path / "run", tiny_llama, base_model=BaseModelRef(name="someone/model", hub_id="someone/not-cached-here")
    )
    end = train_here(files)
    assert end.reason and end.reason.startswith("Could not load someone/model from the Hugging Face Hub")


def test_an_unreadable_spec_ends_as_a_failed_run(tmp_path: Path, tiny_llama: Path) -> None:
    files = make_run(tmp_path / "run", tiny_llama)
    files.spec.write_text('{"version": 1}')
    end = train_here(files)
    assert end.state == "failed"
    assert end.reason and "spec.json" in end.reason


def test_memory_and_disk_failures_are_told_in_plain_words(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from jobs.training.failures import reason

    gpu = reason(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 3, tmp_path)
    assert gpu.startswith("Ran out of GPU memory at step 3")
    assert "Micro-batch" in gpu
    assert reason(MemoryError(), 0, tmp_path).startswith("Ran out of memory before the first step.")
    assert reason(OSError(28, "No space left on device"), 9, tmp_path).startswith("The disk is full at step 9")
    wrapped = RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0")
    assert reason(wrapped, 9, tmp_path).startswith("The disk is full at step 9")
    odd = reason(ValueError("first line\nsecond line"), 2, tmp_path)
    assert odd == "Stopped by an error at step 2: ValueError: first line"


def test_running_out_of_memory_names_the_step_and_the_settings_that_help(tmp_path: Path, tiny_llama: Path) -> None:
    from jobs.training.loop import Job
    from jobs.training.monitor import Monitor, StopRequest
    from jobs.training.run import Attempt

    def takes_too_much(job: Job, monitor: Monitor) -> None:
        monitor.begin()
        for step in (1, 2):
            monitor.step_done(
                step, loss=1.0, learning_rate=1.0, grad_norm=None, tokens=8, save_state=lambda folder: None
            )
        raise MemoryError

    files = make_run(tmp_path / "run", tiny_llama)
    end = Attempt(files, 1, StopRequest(files.stop), takes_too_much).run()
    assert (end.state, end.step, end.adapter_step) == ("failed", 2, None)
    assert end.reason == (
        "Ran out of memory at step 3. Lower Micro-batch or Maximum length, or set Recompute activations to As needed."
    )


def test_prompts_that_cannot_be_answered_do_not_end_the_run(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from jobs.training.prompts import FixedPrompts

    def out_of_memory(self: FixedPrompts) -> list[str]:
        raise MemoryError

    monkeypatch.setattr(FixedPrompts, "_generate", out_of_memory)
    files = make_run(tmp_path / "run", tiny_llama, prompts=("Where is ship 3?",))
    assert train_here(files).state == "completed"
    assert "could not be answered" in caplog.text


@pytest.mark.parametrize("loop", ["auto", "plain"])
def test_the_time_left_holds_the_answers_to_come_before_the_first_is_given(
    tmp_path: Path, tiny_llama: Path, loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs.training.prompts import FixedPrompts

    def slow(self: FixedPrompts) -> None:
        self._tried, self.seconds, self._base_seconds = True, 1_000.0, 1_000.0

    monkeypatch.setattr(FixedPrompts, "try_out", slow)
    files = make_run(tmp_path / "run", tiny_llama, prompts=("Where is ship 3?",), training={"loop": loop})
    assert train_here(files).state == "completed"
    told = [event for event in events(files) if isinstance(event, Metrics)]
    left = {event.step: event.eta_seconds for event in told if event.eta_seconds is not None}
    first, *more = sorted(event.step for event in events(files) if isinstance(event, Answers))
    assert more, "it answers twice"
    # The base answers with the first; what the first ones took is what the others are taken to take.
    assert 1_000 * (2 + len(more)) < left[2] < 1_000 * (2 + len(more)) + 600
    assert left[first + 1] < 600


def test_a_few_tokens_tell_how_long_answers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from jobs.training import prompts
    from jobs.training.load import Device

    now = [0.0]

    def write(model: Any, tokenizer: Any, texts: Any, tokens: int) -> list[str]:
        now[0] += (5.0 if not now[0] else 0.0) + 0.2 + 0.1 * tokens  # wakes up, reads, writes
        return [""] * len(texts)

    monkeypatch.setattr(prompts, "write", write)
    monkeypatch.setattr(prompts.time, "perf_counter", lambda: now[0])
    cpu = Device(torch.device("cpu"), torch.float32)
    rows = [Row(number, np.zeros(30, np.int32), np.arange(30) < 9) for number in range(5)]
    expected = prompts.expected_tokens(rows)
    asked = prompts.FixedPrompts(
        torch.nn.Linear(1, 1), lambda text: {"input_ids": [1]}, ("Ho?", "Hm?"), False, cpu, expected
    )
    assert asked.untried and asked.seconds_to_come == 0
    asked.try_out()
    assert not asked.untried
    assert asked.seconds == pytest.approx(0.2 + 0.1 * 9), "the tuned model's answers are as short as the rows'"
    of_the_base = 0.2 + 0.1 * prompts.MAX_NEW_TOKENS
    assert asked.seconds_to_come == pytest.approx(asked.seconds + of_the_base), "the base answers, too"
    assert prompts.expected_tokens([Row(1, np.zeros(90, np.int32), np.ones(90, bool))]) == prompts.MAX_NEW_TOKENS
    mixed = [Row(number, np.zeros(30, np.int32), np.arange(30) < 2 * number) for number in range(1, 12)]
    assert prompts.expected_tokens(mixed) == 20, "one of ten is longer"


def test_a_plain_text_run_goes_on_from_its_prompts(tmp_path: Path, tiny_llama: Path) -> None:
    rows = [{"text": "the quick brown fox jumps over the lazy dog"}] * 8
    dataset = DatasetRef(
        name="fox.txt",
        fingerprint="f",
        rows=tmp_path / "run" / "rows.parquet",
        mapping=Mapping(shape=Shape.TEXT, columns={"text": "text"}),
    )
    files = make_run(
        tmp_path / "run",
        tiny_llama,
        rows,
        task="text",
        dataset=dataset,
        prompts=("the quick",),
        method_params={"r": 32},
        training={"epochs": 30, "learning_rate": 3e-2},
    )
    assert train_here(files).state == "completed"
    answer = [event for event in events(files) if isinstance(event, Answers)][-1].answers[0]
    assert answer.tuned.startswith(" brown fox")
    assert answer.base != answer.tuned


def test_plain_peft_loads_the_adapter_with_the_same_logits(tmp_path: Path, tiny_llama: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jobs.training.data import collate
    from jobs.training.load import Device
    from jobs.training.objective import Objective, Setting

    files = make_run(tmp_path / "run", tiny_llama, training={"validation_percent": 20})
    end = train_here(files)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tuned = PeftModel.from_pretrained(base, files.adapter).eval()
    assert json.loads((files.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_llama)

    # The validation loss at the best step, which only the same weights give, computed as everyone would.
    from jobs.data.store import read_rows
    from jobs.spec import RunSpec
    from jobs.tasks import task
    from jobs.training.data import encode_rows

    spec = RunSpec.model_validate_json(files.spec.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    rows, _ = encode_rows(spec, task("chat"), tokenizer, read_rows(spec.dataset.rows))
    _, validation = split(rows, spec.training.validation_rows(len(rows)), spec.training.seed)
    with torch.no_grad():
        plain = tuned(**collate(validation, 0)).loss.item()
        with tuned.disable_adapter():
            untuned = tuned(**collate(validation, 0)).loss.item()
    assert plain == pytest.approx(end.best_eval_loss, rel=1e-5)
    assert untuned > plain + 0.1
    device = Device(torch.device("cpu"), torch.float32)
    setting = Setting(params=None, labels=(), pad_token_id=0, tokenizer=tokenizer, max_length=512)
    scores = Objective(task("chat"), setting).evaluate(tuned, validation, 2, device)
    assert scores.loss == pytest.approx(plain, rel=1e-5)


def _rows(*contents: int) -> list[Row]:
    return [
        Row(number, np.array([1, content], dtype=np.int32), np.array([False, True]))
        for number, content in enumerate(contents, start=1)
    ]


@pytest.mark.parametrize(
    ("rows", "percent", "expected"), [(100, 10, 10), (9, 10, 1), (2, 50, 1), (1, 50, 0), (50, 0, 0)]
)
def test_the_split_is_as_large_as_was_shown(rows: int, percent: float, expected: int) -> None:
    count = TrainingParams(validation_percent=percent).validation_rows(rows)
    train, validation = split(_rows(*range(rows)), count, seed=0)
    assert (len(train), len(validation)) == (rows - expected, expected)
    assert {row.number for row in train + validation} == set(range(1, rows + 1))


def test_a_large_dataset_keeps_no_more_aside_than_the_limit_and_trains_on_the_rest() -> None:
    assert TrainingParams().validation_rows(1_000_000) == 2_000
    assert TrainingParams(max_validation_rows=0).validation_rows(1_000_000) == 100_000
    count = TrainingParams(validation_percent=50, max_validation_rows=5).validation_rows(40)
    train, validation = split(_rows(*range(40)), count, seed=0)
    assert (len(train), len(validation)) == (35, 5)
    assert {row.number for row in train} | {row.number for row in validation} == set(range(1, 41))


def test_a_run_from_before_the_limit_goes_on_with_the_split_it_had(tmp_path: Path, tiny_llama: Path) -> None:
    from jobs.spec import RunSpec

    files = make_run(tmp_path / "run", tiny_llama)
    old = json.loads(files.spec.read_text()) | {"version": 1}
    del old["training"]["max_validation_rows"]
    before = RunSpec.model_validate(old)
    assert before.training.validation_rows(1_000_000) == 100_000
    assert RunSpec.model_validate_json(json.dumps(old)) == before
    assert RunSpec.model_validate_json(before.model_dump_json()) == before, "nor does it lose it when written again"
    pairs = RunSpec.model_validate(old | {"task": "dpo", "task_params": {"beta": 0.3}})
    assert pairs.task_params == {"beta": 0.3, "sft_weight": 0.0}, "nor has it another loss from now on"
    old["training"].pop("validation_percent")
    new = RunSpec.model_validate(old | {"version": 3})
    assert new.training.validation_rows(1_000_000) == 2_000


def test_the_same_row_twice_is_never_on_both_sides() -> None:
    rows = _rows(*(number // 2 for number in range(40)))
    for seed in range(5):
        train, validation = split(rows, 8, seed)
        assert len(validation) == 8
        assert not {row.input_ids[1] for row in train} & {row.input_ids[1] for row in validation}
    train, validation = split(_rows(*[1] * 10), 2, seed=0)  # all alike: nothing else is possible
    assert (len(train), len(validation)) == (8, 2)


def test_one_prompt_with_several_answers_is_never_on_both_sides() -> None:
    def row(number: int, prompt: int) -> Row:
        return Row(number, np.array([5, prompt, number]), np.array([False, False, True]))

    rows = [row(number, number // 2) for number in range(40)]
    for seed in range(5):
        train, validation = split(rows, 8, seed)
        assert len(validation) == 8
        assert not {each.input_ids[1] for each in train} & {each.input_ids[1] for each in validation}
    train, validation = split([row(number, int(number > 37)) for number in range(40)], 8, seed=0)
    assert (len(train), len(validation)) == (32, 8)  # one prompt has nearly all rows: they are parted


def test_every_epoch_has_its_own_order_of_all_rows() -> None:
    first, second = epoch_order(20, 0, 0), epoch_order(20, 0, 1)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first == epoch_order(20, 0, 0) != epoch_order(20, 1, 0)


def test_evaluations_are_spread_evenly_and_the_last_step_is_one() -> None:
    assert sorted(evaluation_steps(40, 4)) == [10, 20, 30, 40]
    assert sorted(evaluation_steps(11, 2)) == [6, 11]
    assert sorted(evaluation_steps(3, 10)) == [1, 2, 3]


def test_the_rate_rises_from_its_first_step_and_falls_to_the_end() -> None:
    at = rate("linear", 2, 10)
    assert [round(at(step), 3) for step in (0, 1, 2, 6, 9)] == [0.333, 0.667, 1.0, 0.5, 0.125]
    assert rate("cosine", 0, 10)(5) == pytest.approx(0.5)
    assert rate("constant", 0, 10)(9) == 1.0


def test_a_dataset_without_a_usable_row_says_so(tmp_path: Path, tiny_llama: Path) -> None:
    files = make_run(tmp_path / "run", tiny_llama, ["broken"] * 3, training={"leave_out_bad_rows": True})
    end = train_here(files)
    assert end.reason and end.reason.startswith("No row of ships.jsonl can be trained on")
