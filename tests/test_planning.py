"""Planning: a draft becomes a spec, or every problem in the user's words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.errors import UserError
from jobs.hardware import processor, this_machine
from jobs.presets import PRESETS
from jobs.service import Service
from jobs.service.datasets import BadRow, DatasetView, Preflight
from jobs.service.planning import Draft
from jobs.spec import TrainingParams
from storage.db import write
from storage.files import Home
from storage.states import RunState
from storage.tables import Metric, Run
from tests import tiny


@pytest.fixture
def service(home: Home) -> Iterator[Service]:
    service = Service(home)
    yield service
    service.close()


@pytest.fixture
def draft(service: Service, tiny_llama: Path, tmp_path: Path) -> Draft:
    """Balanced LoRA on 20 good rows and the tiny model."""
    base = service.models.add_folder(tiny_llama)
    file = tmp_path / "pairs.csv"
    file.write_text("question,answer\n" + "".join(f"how many is {n}?,it is {n}\n" for n in range(20)))
    dataset = next(item for item in service.datasets.add(file) if isinstance(item, DatasetView))
    return service.planning.defaults(base.id, dataset.id)


def changed(draft: Draft, **training: object) -> Draft:
    return draft.model_copy(update={"training": {**draft.training, **training}})


def preflight(**values: object) -> Preflight:
    nothing = dict.fromkeys(("truncated_rows", "tokens", "trained_tokens", "longest", "median", "p95", "bad_rows"), 0)
    fields = {**nothing, "bad": (), "reasons": {}, "histogram": (), "example_prompts": (), "seconds": 0, **values}
    return Preflight(**fields)  # type: ignore[arg-type]


def test_the_defaults_make_a_whole_spec(service: Service, draft: Draft) -> None:
    plan = service.planning.plan(draft)
    assert plan.problems == ()
    assert plan.spec is not None
    assert (plan.train_rows, plan.validation_rows, plan.steps) == (18, 2, 120)
    assert plan.spec.training.learning_rate == pytest.approx(1e-3)
    assert plan.spec.predicted_memory == plan.estimate.total  # type: ignore[union-attr]


def test_a_spec_survives_its_json(service: Service, draft: Draft) -> None:
    spec = service.planning.plan(draft).spec
    assert spec is not None
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


def test_every_problem_is_told_at_once_by_its_title(service: Service, draft: Draft) -> None:
    plan = service.planning.plan(changed(draft, learning_rate=5, batch_size=0, warmup_percent="lots"))
    assert plan.spec is None
    for title in ("Learning rate", "Micro-batch", "Warm-up (%)"):
        assert any(f"You set {title} to" in problem for problem in plan.problems)


def test_bad_rows_forbid_the_run_until_they_are_left_out(service: Service, draft: Draft) -> None:
    check = preflight(rows=20, good_rows=19, bad_rows=1, bad=(BadRow(row=7, reason="the answer is empty"),))
    refused = service.planning.plan(draft, check)
    assert refused.spec is None and "row 7" in refused.problems[0]
    allowed = service.planning.plan(changed(draft, leave_out_bad_rows=True), check)
    assert allowed.spec is not None
    assert allowed.train_rows is not None and allowed.validation_rows is not None
    assert allowed.train_rows + allowed.validation_rows == 19


def test_a_length_the_model_was_not_made_for_is_refused(service: Service, draft: Draft) -> None:
    assert any(
        "at most 512 tokens" in problem for problem in service.planning.plan(changed(draft, max_length=4096)).problems
    )


def test_pages_need_a_gpu_and_8_bits_do_not(service: Service, draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    here = processor()
    monkeypatch.setattr("jobs.service.planning.this_machine", lambda: here)
    for optimizer in ("adamw-paged", "adamw-paged-8bit"):
        refused = service.planning.plan(changed(draft, optimizer=optimizer))
        assert refused.spec is None
        assert [problem for problem in refused.problems if "You set Optimizer to a paged one: " in problem]
    narrow = service.planning.plan(changed(draft, optimizer="adamw-8bit"))
    assert narrow.problems == () and any("8 bits" in note and "CPU" in note for note in narrow.notes)
    gpu = here.model_copy(update={"device": "cuda", "bf16": True})
    monkeypatch.setattr("jobs.service.planning.this_machine", lambda: gpu)
    paged = service.planning.plan(changed(draft, optimizer="adamw-paged-8bit"))
    assert paged.problems == () and any("counted in full" in note for note in paged.notes)


def test_chat_data_needs_a_chat_template(service: Service, draft: Draft, tmp_path: Path) -> None:
    plain = service.models.add_folder(tiny.build_llama(tmp_path / "plain", template=None))
    plan = service.planning.plan(draft.model_copy(update={"base_model_id": plain.id}))
    assert any("chat template" in problem for problem in plan.problems)


def test_what_is_gone_is_a_problem_and_not_a_crash(service: Service, draft: Draft) -> None:
    plan = service.planning.plan(draft.model_copy(update={"base_model_id": 99, "dataset_id": 99, "method": "magic"}))
    assert plan.spec is None and len(plan.problems) == 3


def test_an_unknown_preset_is_named(service: Service, draft: Draft) -> None:
    with pytest.raises(UserError, match="no preset 'hasty'"):
        service.planning.defaults(draft.base_model_id, draft.dataset_id, preset="hasty")


@pytest.mark.parametrize(
    ("rows", "percent", "kept"), [(100, 10, 10), (3, 10, 1), (1, 10, 0), (2, 50, 1), (100, 0, 0), (10, 1, 1)]
)
def test_the_validation_split_never_takes_the_last_training_row(rows: int, percent: float, kept: int) -> None:
    assert TrainingParams(validation_percent=percent).validation_rows(rows) == kept


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"epochs": 1}, 25),
        ({"epochs": 2, "gradient_accumulation": 4}, 14),
        ({"epochs": 3, "max_steps": 40}, 40),
        ({"epochs": 0.5}, 13),
        ({"epochs": 2, "min_steps": 60}, 60),
        ({"epochs": 3, "min_steps": 60}, 75),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(settings: dict, steps: int) -> None:
    assert TrainingParams(batch_size=4, **settings).steps(98) == steps


def test_where_epochs_decides_nothing_the_plan_says_so(service: Service, draft: Draft) -> None:
    """The least steps of the presets are more than the epochs of few rows."""

    def note(**training: object) -> str:
        return service.planning.plan(changed(draft, **training)).steps_note

    seen = note()  # 18 rows in 5 steps, three times
    assert seen.startswith("Least steps is 120: Epochs (3, which is 15 steps) changes nothing, and")
    assert seen.endswith("each row is seen about 24 times.")
    assert note(epochs=100, max_steps=120) == "Most steps is 120: Epochs (100, which is 500 steps) changes nothing."
    for decides in ({"min_steps": 0}, {"min_steps": 15}, {"epochs": 24}):
        assert note(**decides) == ""
    assert "which is 1 step)" in note(epochs=0.2) and "about once" in note(epochs=0.2, min_steps=6)
    assert "about 40 % of the rows are seen" in note(epochs=0.2, min_steps=2)


def test_most_steps_below_least_steps_is_said_and_decides(service: Service, draft: Draft) -> None:
    """Least steps was said to decide, though the run ended at Most steps."""
    for most in (80, 10, 1):  # above and below the epochs' steps
        plan = service.planning.plan(changed(draft, max_steps=most))
        assert plan.spec and plan.steps == most, "a preset's Least steps forbids nobody a shorter run"
        assert f"You set Most steps to {most}, below Least steps, which is 120" in plan.steps_note
        assert f"takes {most} step{'' if most == 1 else 's'}," in plan.steps_note and "15 steps" in plan.steps_note
    assert service.planning.plan(changed(draft, max_steps=15, min_steps=15)).steps_note == ""


def test_very_few_rows_are_a_warning_and_no_problem(service: Service, draft: Draft) -> None:
    assert service.planning.plan(draft).warnings == (), "20 are enough to tell"
    few = service.planning.plan(draft, preflight(rows=3, good_rows=3, tokens=30, longest=10))
    assert few.spec and few.problems == ()
    (warning,) = few.warnings
    assert "There are only 3 rows" in warning and "the 1 row kept aside" in warning
    bare = service.planning.plan(changed(draft, validation_percent=0), preflight(rows=1, good_rows=1, tokens=9))
    assert "There is only 1 row: the model will learn it by heart" in bare.warnings[0]
    assert "them" not in bare.warnings[0] and "aside" not in bare.warnings[0]
    # Rows that are left out teach nothing.
    bad = preflight(rows=25, good_rows=19, bad_rows=6, bad=(BadRow(row=7, reason="the answer is empty"),))
    assert "only 19 rows" in service.planning.plan(changed(draft, leave_out_bad_rows=True), bad).warnings[0]


@pytest.mark.parametrize("rows", [5, 126, 2_000, 200_000])
def test_a_more_thorough_preset_takes_more_steps_and_quick_never_many(rows: int) -> None:
    quick, balanced, thorough = (TrainingParams(**PRESETS[name].training) for name in ("quick", "balanced", "thorough"))
    assert quick.steps(rows) == 80, "as many for few rows as for many"
    assert 1.5 * quick.steps(rows) <= balanced.steps(rows) == thorough.steps(rows) / 2


def test_what_a_method_cannot_train_with_is_told(service: Service, draft: Draft) -> None:
    prefix = draft.model_copy(update={"method": "prefix-tuning", "method_params": {"tokens": 30}})
    assert service.planning.plan(changed(prefix, max_length=256)).problems == ()
    (problem,) = service.planning.plan(changed(prefix, max_length=256, recompute="on")).problems
    assert "You set Recompute activations to Always, but Prefix tuning cannot train with it" in problem
    (problem,) = service.planning.plan(changed(prefix, max_length=500)).problems
    assert "at most 512 tokens, and Prefix tuning takes 30 of them" in problem


def test_a_new_head_is_counted_and_its_labels_are_looked_at(service: Service, tmp_path: Path) -> None:
    base = service.models.add_folder(tiny.build_bert(tmp_path / "bert"))
    file = tmp_path / "labels.csv"
    file.write_text("text,label\n" + "".join(f"the fox says {n},{'ab'[n % 2]}\n" for n in range(20)))
    dataset = next(item for item in service.datasets.add(file) if isinstance(item, DatasetView))
    draft = service.planning.defaults(base.id, dataset.id)
    draft = changed(draft, max_length=64)
    assert draft.task == "classification"
    unchecked = service.planning.plan(draft)
    plan = service.planning.plan(draft, preflight(rows=20, good_rows=20, labels={"a": 10, "b": 10}))
    assert plan.problems == ()
    head = 64 * 2 + 2
    assert plan.trainable_parameters == unchecked.trainable_parameters + head  # type: ignore[operator]
    assert f"The model gets a new head of {head:,} parameters, trained along with any method." in plan.notes
    # The vocabulary's logits, which a decoder's training would keep, are no part of it.
    assert plan.estimate and plan.estimate.logits < 1 << 20
    same = service.planning.plan(draft, preflight(rows=20, good_rows=20, labels={"a": 20}))
    assert same.spec is None
    assert "Every row has the label 'a'" in same.problems[0]
    bare = service.planning.plan(changed(draft, validation_percent=0))
    assert any("nothing is measured" in note for note in bare.notes)


def test_an_encoder_is_refused_for_a_chat_in_words(service: Service, draft: Draft, tmp_path: Path) -> None:
    base = service.models.add_folder(tiny.build_bert(tmp_path / "bert"))
    plan = service.planning.plan(draft.model_copy(update={"base_model_id": base.id}))
    assert any("it reads texts and writes none" in problem for problem in plan.problems)


EVALUATED = (10, 20, 30)  # steps of an ended run: the last one is its end
PAUSE = 3.0  # seconds that each took


def ended_run(
    service: Service, draft: Draft, *, seconds_a_step: float, away: float | None = None, **hardware: object
) -> int:
    """A run of these settings that took 30 steps of 100 tokens, two evaluations, and 12 seconds besides; its id.

    `away`: seconds between its two attempts, after the checkpoint of step 20.
    """
    spec = service.planning.plan(draft).spec
    assert spec
    found = {"name": this_machine().name, "loop": "packed", **hardware}
    now, resumed = 1e9, None
    said: list[tuple[int, str, float, float]] = []
    for step in range(1, 31):
        now += seconds_a_step
        said.append((step, "tokens_per_second", 100 / seconds_a_step, now))
        if step in EVALUATED:
            now += PAUSE
            said.append((step, "eval_loss", 1.0, now))
        if step == 20 and away is not None:
            now += away
            resumed = now
    with write(service.engine) as session:
        run = Run(
            name="earlier",
            base_model_id=draft.base_model_id,
            dataset_id=draft.dataset_id,
            spec=spec.model_dump(mode="json"),
            state=RunState.COMPLETED,
            step=30,
            hardware=found,
            attempt=1 if resumed is None else 2,
            attempt_at=datetime.fromtimestamp(resumed or 1e9, UTC),
            trained_seconds=30 * seconds_a_step + 2 * PAUSE + 12,
        )
        session.add(run)
        session.flush()
        for step, name, value, time in said:
            session.add(Metric(run_id=run.id, step=step, name=name, value=value, time=time))
        return run.id


def test_the_time_comes_from_the_most_alike_of_the_earlier_runs_here(service: Service, draft: Draft) -> None:
    check = preflight(rows=20, good_rows=20, tokens=2_000, longest=100)
    assert not service.planning.plan(draft).untold, "the rows are not checked yet"
    none = service.planning.plan(draft, check)
    assert none.seconds is None and none.untold and none.spec and none.spec.predicted_seconds is None
    ended_run(service, draft, seconds_a_step=9.0, name="another machine")
    ended_run(service, draft, seconds_a_step=9.0, loop="plain")
    assert service.planning.plan(draft, check).seconds is None, "nothing like it is known"
    ended_run(service, draft, seconds_a_step=2.0)
    ended_run(service, changed(draft, recompute="on"), seconds_a_step=4.0)
    plan = service.planning.plan(draft, check)
    pauses = (draft.training["evaluations"] - 1) * PAUSE  # the last one is among the 12 seconds
    # 18 rows 24 times (120 steps of 5 an epoch), of 100 tokens each, at 50 tokens a second.
    assert plan.seconds == pytest.approx((18 * 24 * 100 / 50 + pauses + 12,) * 2)
    assert not plan.untold and plan.spec and plan.spec.predicted_seconds == plan.seconds
    slower = service.planning.plan(changed(draft, recompute="on"), check).seconds
    assert slower == pytest.approx((18 * 24 * 100 / 25 + pauses + 12,) * 2)
    ended_run(service, draft, seconds_a_step=3.0)
    ranged = service.planning.plan(draft, check).seconds
    assert ranged == pytest.approx((18 * 24 * 100 / 50 + pauses + 12, 18 * 24 * 3 + pauses + 12)), (
        "the machine had other work once"
    )
    for _ in range(5):
        ended_run(service, draft, seconds_a_step=2.5)
    latest = service.planning.plan(draft, check).seconds
    assert latest == pytest.approx((18 * 24 * 2.5 + pauses + 12,) * 2), "what it was like long ago says nothing"
    ended_run(service, changed(draft, memory_limit_gb=100), seconds_a_step=9.0)
    assert service.planning.plan(draft, check).seconds == latest, "it may have had to save memory"
    assert service.planning.plan(draft).seconds is None, "rows that nobody has counted take nobody knows how long"


def test_a_run_that_computes_layers_twice_is_said_to_take_longer_than_one_that_does_not(
    service: Service, draft: Draft
) -> None:
    check = preflight(rows=20, good_rows=20, tokens=2_000, longest=100)
    ended_run(service, draft, seconds_a_step=2.0, slowdown=1.0)
    without, twice = (service.planning.plan(each, check).seconds for each in (draft, changed(draft, recompute="on")))
    assert without and twice
    factor = 1 + (twice[0] - without[0]) / (18 * 24 * 100 / 50)
    assert 1.25 < factor < 1.5
    ended_run(service, changed(draft, recompute="on"), seconds_a_step=2.0 * factor, slowdown=factor)
    again = service.planning.plan(changed(draft, recompute="on"), check).seconds
    assert again == pytest.approx(twice, rel=1e-3), "where the earlier one did so, too, it tells its time as it is"


def test_who_keeps_no_rows_aside_waits_for_no_evaluation(service: Service, draft: Draft) -> None:
    check = preflight(rows=20, good_rows=20, tokens=2_000, longest=100)
    ended_run(service, draft, seconds_a_step=2.0)
    found = service.planning.plan(changed(draft, validation_percent=0), check).seconds
    assert found == pytest.approx((20 * 24 * 100 / 50 + 12,) * 2)


def test_a_run_that_went_on_after_a_weekend_tells_what_it_took_without_it(service: Service, draft: Draft) -> None:
    """It was said to take "3 min to 45 h"."""
    check = preflight(rows=20, good_rows=20, tokens=2_000, longest=100)
    ended_run(service, draft, seconds_a_step=2.0, away=45 * 3600)
    found = service.planning.plan(draft, check).seconds
    pauses = (draft.training["evaluations"] - 1) * PAUSE
    # The evaluation before the weekend has no length of its own: it counts among what the run took besides.
    assert found == pytest.approx((18 * 24 * 100 / 50 + pauses + PAUSE + 12,) * 2)


def test_the_plan_says_which_loop_will_train_and_estimates_that_one(service: Service, draft: Draft) -> None:
    packed, plain = service.planning.plan(draft), service.planning.plan(changed(draft, loop="plain"))
    assert packed.loop and plain.loop and packed.estimate and plain.estimate
    assert (packed.loop.loop, plain.loop.loop) == ("packed", "plain")
    assert packed.estimate.total < plain.estimate.total


def test_a_draft_is_fitted_by_its_checked_rows(service: Service, draft: Draft, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = changed(draft, batch_size=64, max_length=512, recompute="off", loop="plain")
    check = preflight(rows=20, good_rows=20, tokens=9_000, longest=500, p99=480, spread=20.0)
    plan = service.planning.plan(wide, check)
    assert plan.estimate and plan.fits
    short = this_machine().model_copy(update={"memory_free": plan.estimate.total - (4 << 20)})
    monkeypatch.setattr("jobs.service.planning.this_machine", lambda: short)
    assert service.planning.plan(wide, check).fits is False
    fitted, found = service.planning.fit(wide, check)
    assert found.fits and found.changes
    assert service.planning.plan(fitted, check).fits
    assert service.planning.plan(fitted, check).problems == ()
    with pytest.raises(UserError, match="Micro-batch"):
        service.planning.fit(changed(draft, batch_size=0))


def test_a_run_arranges_itself_in_the_memory_there_is_and_says_how(
    service: Service, draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide, check = (
        changed(draft, batch_size=64, max_length=512),
        preflight(rows=20, good_rows=20, tokens=9_000, longest=500, p99=480, spread=20.0),
    )
    roomy = service.planning.plan(wide, check)
    assert roomy.estimate and roomy.fits and roomy.loop and "To save memory" not in roomy.loop.why
    least = service.planning.plan(changed(wide, memory_limit_gb=0.1), check)
    assert least.estimate and least.fits is False and least.loop
    assert "To save memory, all layers are computed twice" in least.loop.why
    between = (roomy.estimate.total + least.estimate.total) // 2
    short = this_machine().model_copy(update={"memory_free": between})
    monkeypatch.setattr("jobs.service.planning.this_machine", lambda: short)
    arranged = service.planning.plan(wide, check)
    assert arranged.fits and arranged.estimate and arranged.loop
    assert least.estimate.total <= arranged.estimate.total <= between < roomy.estimate.total
    never = service.planning.plan(changed(wide, recompute="off"), check)
    assert never.loop and "computed twice" not in never.loop.why


def test_a_memory_limit_is_what_the_run_may_take(service: Service, draft: Draft) -> None:
    free = service.planning.plan(draft)
    assert free.fits and not free.memory_limited
    limited = service.planning.plan(changed(draft, memory_limit_gb=0.1))
    assert limited.fits is False and limited.memory_limited and limited.free_memory == 100_000_000
    (note,) = limited.warnings
    assert "you set Memory limit to 0.1 GB" in note and "are free on" not in note
    assert "it goes over the limit" in note
    assert "before it loads a model" in note and "Fit it for me" not in note, "nothing could make it fit"
    wide = changed(draft, batch_size=64, recompute="off", loop="plain")
    most = service.planning.plan(wide).estimate
    assert most
    near = (most.total - (10 << 20)) / 1e9
    almost = service.planning.plan(changed(wide, memory_limit_gb=near))
    assert almost.can_be_fitted and not limited.can_be_fitted and not free.can_be_fitted
    (note,) = almost.warnings
    assert "With these settings" in note and "before it loads a model" not in note
    beyond = service.planning.plan(changed(draft, memory_limit_gb=9_000))
    assert not beyond.memory_limited and beyond.free_memory > 100_000_000


def test_recomputation_of_earlier_versions_is_understood(service: Service, draft: Draft) -> None:
    """It was switched on or off: who switched it off had no wish to forbid it."""
    for earlier, now in ((True, "on"), (False, "auto")):
        spec = service.planning.plan(changed(draft, recompute=earlier)).spec
        assert spec and spec.training.recompute == now
