"""Fit it for me: over many shapes and memory sizes it fits where anything fits, and changes quality last."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
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
    return replace(before, training=found.training, params=type(before.method).Params(**found.params))


def enough(each: Run, hardware: Hardware) -> bool:
    return fits(each.needs(hardware), hardware, each.training)


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
@pytest.mark.parametrize("recompute", ("auto", "off"))
@pytest.mark.parametrize("name", ("lora", "qlora", "dora", "full", "adalora", "oft"))
def test_it_fits_where_anything_does_with_as_many_rows_a_step(
    shape: str, gigabytes: float, name: str, recompute: str
) -> None:
    before, hardware = run(shape, name, recompute=recompute), gpu(gigabytes)
    found = fit(before, hardware)
    after = with_settings(before, found)
    if found.fits:
        assert enough(after, hardware)
        assert found.needs == after.needs(hardware).total
        assert rows_a_step(found.training) == rows_a_step(before.training)
        assert after.choice(hardware).loop == before.choice(hardware).loop
        same = found.training == before.training and found.params == before.params.model_dump()
        assert same == (found.changes == ()) == enough(before, hardware)
        return
    assert (found.training, found.changes) == (before.training, ()), "what does not help is not changed"
    for each in as_saving_as_can_be(before):
        needs = each.needs(hardware)
        assert not fits(needs, hardware, each.training) and needs.total >= found.needs


def as_saving_as_can_be(before: Run) -> Iterator[Run]:
    """Whatever may be changed to need less is; with every micro-batch that makes as many rows a step."""
    params: dict[str, Any] = {}
    if "base_weights" in before.params.model_dump():
        params["base_weights"] = "4-bit"
    if before.rank:
        params["r"] = 4
    saving: dict[str, Any] = {"max_length": before.p99}
    if before.method.recomputes:
        saving["recompute"] = "auto"
    if before.method.name == "full":
        saving["optimizer"] = "adamw-8bit"
    for size in (1, 2, 4, 8, 16):
        training = {**saving, "batch_size": size, "gradient_accumulation": 16 // size}
        yield replace(
            before,
            params=type(before.method).Params(**before.params.model_dump() | params),
            training=before.training.model_copy(update=training),
        )


@pytest.mark.parametrize("loop", ("auto", "plain"))
def test_what_costs_no_quality_is_changed_first(loop: str) -> None:
    """As memory shrinks, the kinds of change come in their order, and none before the earlier ones are used up."""
    seen: list[tuple[bool, ...]] = []
    before = run("8b", params={"r": 32, "alpha": 64}, recompute="off", loop=loop)
    for tenths in range(1_500, 30, -5):
        found = fit(before, gpu(tenths / 10))
        if not found.fits:
            break
        now, old = found.training, before.training
        seen.append(
            (
                found.params["r"] < 32,
                now.max_length < old.max_length,
                found.params["base_weights"] != "full",
                now.recompute == "auto",
                now.batch_size < old.batch_size,
            )
        )
    assert seen == sorted(seen), "each gigabyte less brings the next kind, never an earlier one without need"
    of_its_own = (False, False, False, True, False) in seen
    assert of_its_own == (loop == "auto"), "the packed loop makes its packs smaller, whatever the micro-batch"
    assert ((False, False, False, False, True) in seen) == (loop == "plain")
    assert any(kinds[2] for kinds in seen)


def test_the_optimizer_goes_into_8_bits_where_all_is_trained_and_recomputation_does_not_do() -> None:
    before = run("1b", "full", max_length=512, recompute="off")
    seen = []
    for tenths in range(560, 190, -5):
        found = fit(before, gpu(tenths / 10))
        if found.fits:
            now = found.training
            seen.append((now.optimizer == "adamw-8bit", now.recompute == "auto", now.batch_size < 16))
            assert (now.optimizer != "adamw") == any("Optimizer in 8 bits" in change for change in found.changes)
    assert seen == sorted(seen)
    assert {(False, False, True), (False, True, True), (True, False, True), (True, True, True)} <= set(seen)


def test_the_optimizer_stays_where_little_is_trained_and_on_a_cpu() -> None:
    for gigabytes in range(3, 40):
        assert fit(run("8b"), gpu(gigabytes)).training.optimizer == "adamw"
        assert fit(run("1b", "full"), cpu(gigabytes)).training.optimizer == "adamw"
    paged = fit(run("1b", "full", max_length=512, optimizer="adamw-paged"), gpu(21))
    assert paged.fits and paged.training.optimizer == "adamw-paged-8bit"


def with_micro_batch(before: Run, size: int) -> Run:
    times = rows_a_step(before.training) // size
    return replace(
        before, training=before.training.model_copy(update={"batch_size": size, "gradient_accumulation": times})
    )


def test_the_micro_batch_is_the_largest_that_fits() -> None:
    before, hardware = run("8b", loop="plain", recompute="off"), gpu(64)
    size = fit(before, hardware).training.batch_size
    assert 1 < size < 16
    assert enough(with_micro_batch(before, size), hardware)
    assert not enough(with_micro_batch(before, 2 * size), hardware)


def test_a_smaller_micro_batch_is_taken_rather_than_recomputation() -> None:
    """Both learn the same, and the one is faster."""
    before, hardware = run("8b", loop="plain"), gpu(64)
    after = with_settings(before, fit(before, hardware))
    plan, _ = after.planned(hardware)
    wider = with_micro_batch(before, 2 * after.training.batch_size)
    assert not plan.recomputed and wider.planned(hardware)[0].recomputed and enough(wider, hardware)
    short = gpu(30)
    assert with_settings(before, fit(before, short)).planned(short)[0].recomputed, "where nothing else does"


def test_the_packed_loop_arranges_itself_where_it_may() -> None:
    """Packs, recomputed layers and embeddings are its plan's: no setting has to be changed for them."""
    before = run("8b")
    for gigabytes in (20, 24, 32, 48, 80):
        found = fit(before, gpu(gigabytes))
        assert found.fits and found.changes == ()
    roomy, shorter, short, least = (before.planned(gpu(gigabytes))[0] for gigabytes in (80, 48, 24, 20))
    assert roomy.pack_tokens > shorter.pack_tokens > short.pack_tokens
    assert roomy.embedding_on_host is False and short.embedding_on_host
    assert roomy.recomputed == 0 <= short.recomputed < least.recomputed


def test_a_memory_limit_is_kept_and_never_raised() -> None:
    before = run("8b", memory_limit_gb=16)
    assert not enough(before, gpu(80)) and enough(run("8b"), gpu(80))
    found = fit(before, gpu(80))
    assert found.fits and found.training.memory_limit_gb == 16 and found.changes
    assert found.needs < 16e9
    assert found.params == fit(run("8b"), gpu(16)).params


def test_it_says_what_it_changed_and_what_that_costs() -> None:
    said = " ".join(fit(run("8b", loop="plain"), gpu(30)).changes)
    assert "Micro-batch from 16 to" in said and "still 16 rows a step" in said
    allowed = fit(run("8b", recompute="off"), gpu(22))
    (change,) = allowed.changes
    assert change.startswith("Recompute activations from Never to As needed")
    four = fit(run("8b"), gpu(11))
    assert four.params["base_weights"] == "4-bit"
    assert any("4 bits" in change for change in four.changes)
    assert all(change.endswith(".") for change in (*four.changes, *allowed.changes))


def test_the_faster_loop_is_not_given_up_for_8_bits() -> None:
    for gigabytes in range(6, 40):
        assert fit(run("8b"), gpu(gigabytes)).params["base_weights"] != "8-bit"  # the packed loop knows 4 bits only
    plain = fit(run("8b", loop="plain", max_length=512), gpu(17))
    assert plain.params["base_weights"] == "8-bit"


def test_on_a_cpu_the_base_stays_as_it_is() -> None:
    before = run("1b", loop="plain", recompute="off")
    found = fit(before, cpu(0.7 * before.needs(cpu(1)).total / 1e9))
    assert found.fits and found.changes
    assert found.params["base_weights"] == "full"


def test_rows_are_cut_only_where_the_data_was_checked() -> None:
    unknown = replace(run("8b", "full", max_length=8_192), lengths=None, p99=None)
    for gigabytes in (100, 120, 140):
        assert fit(unknown, gpu(gigabytes)).training.max_length == 8_192


@pytest.mark.parametrize("name", all_methods())
def test_every_method_can_be_fitted_and_recomputes_only_where_it_can(name: str) -> None:
    before = run("1b", name)
    for gigabytes in (2, 5, 9, 14):
        found = fit(before, gpu(gigabytes))
        assert found.training.recompute == "auto", "it is as it was"
        assert before.method.recomputes or not with_settings(before, found).planned(gpu(gigabytes))[0].recomputed
        assert not before.method.check(with_settings(before, found).params, before.shape, gpu(80)) or not found.fits


def test_8_bit_floats_are_set_only_where_the_page_takes_them() -> None:
    """Not for a task that the packed loop does not know, nor for pairs held against the base in full precision."""
    hardware = gpu(18).model_copy(update={"fp8": True})
    assert fit(run("8b", loop="auto", recompute="off"), hardware).params["base_weights"] == "fp8"
    for name in ("kto", "dpo"):
        before = Run(**{**vars(run("8b")), "task": task(name)})
        assert fit(before, hardware).params["base_weights"] != "fp8"


def test_what_nothing_makes_fit_says_what_a_person_may_set_and_that_then_fits() -> None:
    before = run("135m", "full", memory_limit_gb=3, max_length=1_024)
    least = min(each.needs(cpu(60)).total for each in (*as_saving_as_can_be(before), before))
    tight = replace(before, training=before.training.model_copy(update={"memory_limit_gb": least * 0.97e-9}))
    found = fit(tight, cpu(60))
    assert not found.fits and found.limited and found.allowed < found.needs
    assert len(found.instead) == 3
    said = dict(each.split(" at ", 1) for each in found.instead)
    limit = float(said["Memory limit"].split(" GB")[0])
    length = int(said["Maximum length"].split(",")[0])
    for settings in ({"memory_limit_gb": limit}, {"optimizer": "adamw-8bit"}, {"max_length": length}):
        mended = replace(tight, training=tight.training.model_copy(update=settings))
        assert fit(mended, cpu(60)).fits, settings
    free = fit(replace(tight, training=before.training.model_copy(update={"memory_limit_gb": 0})), cpu(least * 0.97e-9))
    assert not free.fits and not free.limited and not any("Memory limit" in each for each in free.instead)
    assert fit(run("8b"), cpu(1)).instead == ()
