"""Fit it for me: over many shapes and memory sizes it fits where anything fits, and changes quality last."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from jobs.fitting import Fitted, Run, fit
from jobs.hardware import Hardware
from jobs.memory.estimate import fits
from jobs.memory.kept import Lengths
from jobs.methods import all_methods, method
from jobs.spec import TrainingParams
from jobs.tasks import task
from tests.test_memory import llama

CHECKED = Lengths(longest=1_800, mean=400.0, spread=300.0)


def gpu(gigabytes: float) -> Hardware:
    size = int(gigabytes * 1e9)
    return Hardware(device="cuda", name="GPU", memory_total=size, memory_free=size, cores=8, bf16=True)


def cpu(gigabytes: float) -> Hardware:
    return gpu(gigabytes).model_copy(update={"device": "cpu", "name": "CPU"})


def run(shape: str = "8b", name: str = "lora", params: dict[str, Any] | None = None, **training: Any) -> Run:
    chosen = method(name)
    settings = {"batch_size": 16, "max_length": 2_048, **training}
    whole = llama(shape)
    return Run(
        shape=whole,
        trained=whole,
        task=task("chat"),
        method=chosen,
        params=type(chosen).Params(**(params or {})),
        training=TrainingParams(**settings),
        lengths=CHECKED,
        p99=1_200,
    )


def with_settings(before: Run, found: Fitted) -> Run:
    return Run(
        **{**vars(before), "training": found.training, "params": type(before.method).Params(**found.params)},
    )


def rows_a_step(training: TrainingParams) -> int:
    return training.batch_size * training.gradient_accumulation


def test_what_fits_is_left_as_it_is() -> None:
    before = run("135m")
    found = fit(before, gpu(80))
    assert (found.training, found.params) == (before.training, before.params.model_dump())
    assert found.fits and found.changes == ()


@pytest.mark.parametrize(
    ("shape", "gigabytes"), list(itertools.product(("135m", "1b", "8b"), (3, 6, 10, 16, 24, 48, 80)))
)
@pytest.mark.parametrize("name", ("lora", "qlora", "dora", "full", "adalora", "oft"))
def test_it_fits_where_anything_does_with_as_many_rows_a_step(shape: str, gigabytes: float, name: str) -> None:
    before, hardware = run(shape, name), gpu(gigabytes)
    found = fit(before, hardware)
    after = with_settings(before, found)
    if found.fits:
        assert fits(after.needs(hardware), hardware)
        assert found.needs == after.needs(hardware).total
        assert rows_a_step(found.training) == rows_a_step(before.training)
        same = found.training == before.training and found.params == before.params.model_dump()
        assert same == (found.changes == ())
        assert same == fits(before.needs(hardware), hardware)
        return
    assert (found.training, found.changes) == (before.training, ()), "what does not help is not changed"
    saving = {"batch_size": 1, "gradient_accumulation": 16, "recompute": before.method.recomputes}
    if name == "full":
        saving["optimizer"] = "adamw-8bit"
    least = Run(**{**vars(before), "training": before.training.model_copy(update=saving)})
    assert not fits(least.needs(hardware), hardware)


def test_what_costs_no_quality_is_changed_first() -> None:
    """As memory shrinks, the kinds of change come in their order, and none before the earlier ones are used up."""
    seen: list[tuple[bool, ...]] = []
    before = run("8b", params={"r": 32, "alpha": 64})
    for tenths in range(900, 30, -5):
        found = fit(before, gpu(tenths / 10))
        if not found.fits:
            break
        now, old = found.training, before.training
        seen.append(
            (
                found.params["r"] < 32,
                now.max_length < old.max_length,
                found.params["base_weights"] != "full",
                now.recompute,
                now.batch_size < old.batch_size,
            )
        )
    assert seen == sorted(seen), "each gigabyte less brings the next kind, never an earlier one without need"
    assert (False, False, False, False, True) in seen
    assert (False, False, False, True, False) in seen, "with recomputation the micro-batch grows again"
    assert any(kinds[2] for kinds in seen)


def test_the_optimizer_goes_into_8_bits_where_all_is_trained_and_recomputation_does_not_do() -> None:
    before = run("1b", "full", max_length=512)
    seen = []
    for tenths in range(560, 190, -5):
        found = fit(before, gpu(tenths / 10))
        if found.fits:
            now = found.training
            seen.append((now.optimizer == "adamw-8bit", now.recompute, now.batch_size < 16))
            assert (now.optimizer != "adamw") == any("Optimizer in 8 bits" in change for change in found.changes)
    assert seen == sorted(seen)
    assert {(False, False, True), (False, True, True), (True, False, True), (True, True, True)} <= set(seen)


def test_the_optimizer_stays_where_little_is_trained_and_on_a_cpu() -> None:
    for gigabytes in range(3, 40):
        assert fit(run("8b"), gpu(gigabytes)).training.optimizer == "adamw"
        assert fit(run("1b", "full"), cpu(gigabytes)).training.optimizer == "adamw"
    paged = fit(run("1b", "full", max_length=512, optimizer="adamw-paged"), gpu(21))
    assert paged.fits and paged.training.optimizer == "adamw-paged-8bit"


def test_the_micro_batch_is_the_largest_that_fits() -> None:
    before, hardware = run("8b"), gpu(40)
    found = fit(before, hardware)
    assert 1 < found.training.batch_size < 16
    larger = found.training.model_copy(
        update={
            "batch_size": found.training.batch_size * 2,
            "gradient_accumulation": found.training.gradient_accumulation // 2,
        }
    )
    assert not fits(with_settings(before, found.model_copy(update={"training": larger})).needs(hardware), hardware)


def test_it_says_what_it_changed_and_what_that_costs() -> None:
    before = run("8b")
    said = " ".join(fit(before, gpu(30)).changes)
    assert "Micro-batch from 16 to" in said and "still 16 rows a step" in said
    four = fit(before, gpu(11))
    assert four.params["base_weights"] == "4-bit"
    assert any("4 bits" in change for change in four.changes)
    assert all(change.endswith(".") for change in four.changes)


def test_the_faster_loop_is_not_given_up_for_8_bits() -> None:
    for gigabytes in range(6, 40):
        assert fit(run("8b"), gpu(gigabytes)).params["base_weights"] != "8-bit"  # the packed loop knows 4 bits only
    plain = fit(run("8b", loop="plain", max_length=512), gpu(17))
    assert plain.params["base_weights"] == "8-bit"


def test_on_a_cpu_the_base_stays_as_it_is() -> None:
    before = run("1b")
    found = fit(before, cpu(0.7 * before.needs(cpu(1)).total / 1e9))
    assert found.fits and found.changes
    assert found.params["base_weights"] == "full"


def test_rows_are_cut_only_where_the_data_was_checked() -> None:
    unknown = Run(**{**vars(run("8b", "full", max_length=8_192)), "lengths": None, "p99": None})
    for gigabytes in (100, 120, 140):
        assert fit(unknown, gpu(gigabytes)).training.max_length == 8_192


@pytest.mark.parametrize("name", all_methods())
def test_every_method_can_be_fitted_and_recomputes_only_where_it_can(name: str) -> None:
    before = run("1b", name)
    for gigabytes in (2, 5, 9, 14):
        found = fit(before, gpu(gigabytes))
        assert before.method.recomputes or not found.training.recompute
        assert not before.method.check(with_settings(before, found).params, before.shape, gpu(80)) or not found.fits
