"""What is left of a run in seconds, from its latest steps: within a fifth after 20 of them, whatever bounds them."""

from __future__ import annotations

import numpy as np
import pytest

from app.run_words import measured_text
from jobs.pace import Earlier, alike, predicted_seconds, tokens_seen
from jobs.training.pace import Pace


def steps(kind: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, seconds) of steps of three rows of log-normal length, as instruction data have."""
    draw = np.random.default_rng(seed)
    tokens = np.exp(draw.normal(6, 0.85, (count, 3))).sum(axis=1)
    a_step, a_token = {"launches": (0.012, 0.0), "arithmetic": (0.0, 1e-4), "both": (0.05, 5e-5)}[kind]
    seconds = (a_step + a_token * tokens) * draw.normal(1, 0.05, count)
    return tokens, seconds


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ("launches", "arithmetic", "both"))
def test_after_20_steps_it_is_within_a_fifth(kind: str, seed: int) -> None:
    tokens, seconds = steps(kind, 400, seed)
    seconds[0] += 30  # compiles
    seconds[7] += 1  # records a new size
    pace = Pace()
    for count, took in zip(tokens[:20], seconds[:20], strict=True):
        pace.add(int(count), took)
    found = pace.seconds(380, 380 * tokens.mean())  # of the rows to come only the mean is known
    assert found == pytest.approx(seconds[20:].sum(), rel=0.2)


def test_steps_alike_take_what_they_took() -> None:
    pace = Pace()
    for _ in range(3):
        pace.add(100, 2.0)
    assert pace.seconds(5, 500) == pytest.approx(10.0)
    assert pace.seconds(0, 0) == 0.0


def test_one_step_is_enough_to_say_something() -> None:
    pace = Pace()
    pace.add(0, 1.5)
    assert pace.seconds(10, 0) == pytest.approx(15.0)


def test_a_step_that_recorded_hides_the_one_before_it_and_does_not_count() -> None:
    pace = Pace()
    pace.add(100, 4.0, once=3.0)
    assert pace.seconds(2, 200) == pytest.approx(2.0)  # better than nothing
    for once in (0.0, 3.0, 0.0, 3.0):
        pace.add(100, 2.0 + once * 0.4, once=once)  # the device computed while the host recorded
    assert pace.seconds(2, 200) == pytest.approx(4.0)


def test_longer_rows_to_come_take_longer() -> None:
    pace = Pace()
    for tokens in (100, 200, 300, 400):
        pace.add(tokens, 0.1 + tokens / 1000)
    assert pace.seconds(10, 10 * 800) == pytest.approx(9.0)
    assert pace.seconds(10, 10 * 100) == pytest.approx(2.0)


def earlier(seconds_a_step: float, steps: int = 20, besides: float = 30.0) -> Earlier:
    times = np.arange(steps) * seconds_a_step
    times[steps // 2 :] += besides / 2  # an evaluation between two steps
    return Earlier(
        times=tuple(times.tolist()),
        rates=(100 / seconds_a_step,) * steps,
        evaluated=(times[steps // 2 - 1] + besides / 4, times[-1] + 1),
        steps=steps,
        seconds=steps * seconds_a_step + besides,
    )


def test_an_earlier_run_tells_its_rate_and_what_it_took_besides_its_steps() -> None:
    assert predicted_seconds(earlier(2.0), 5_000, evaluations=2) == pytest.approx(5_000 / 50 + 30)


@pytest.mark.parametrize("pause", (1.0, 4.0, 15.0))
def test_every_evaluation_pauses_a_run_however_short_it_is_beside_a_step(pause: float) -> None:
    """One that takes no longer than three steps was taken for a step, and its time was lost."""
    found = [predicted_seconds(earlier(2.0, besides=2 * pause), 2_000, evaluations=count) for count in (1, 2, 8)]
    assert found == pytest.approx([2_000 / 50 + pause * count for count in (1, 2, 8)])


def with_attempts(found: Earlier, *gaps: tuple[int, float]) -> Earlier:
    """As if it had ended after each of these steps, with a checkpoint, and gone on so many seconds later."""
    times, evaluated, resumed = np.array(found.times), np.array(found.evaluated), 0.0
    for step, gap in gaps:
        ended = float(times[step - 1])
        times[step:] += gap
        evaluated = np.append(np.where(evaluated > ended, evaluated + gap, evaluated), ended + 0.5)
        resumed = ended + gap
    return found.model_copy(
        update={"times": tuple(times.tolist()), "evaluated": tuple(evaluated.tolist()), "resumed": resumed}
    )


@pytest.mark.parametrize("gaps", ([(30, 45 * 3600.0)], [(10, 3600.0), (30, 45 * 3600.0)]))
def test_what_lies_between_two_attempts_is_no_evaluation(gaps: list[tuple[int, float]]) -> None:
    """A run that went on after a weekend was taken to stand still for the weekend at every evaluation. Of several
    attempts it is known only when the last began."""
    whole = earlier(2.0, steps=40, besides=8.0)
    for count in (0, 1, 4):
        found = predicted_seconds(with_attempts(whole, *gaps), 5_000, count)
        assert found == pytest.approx(predicted_seconds(whole, 5_000, count), abs=2.0)


def test_evaluations_together_take_no_more_than_the_run_besides_its_steps() -> None:
    """A pause that is no evaluation's, and shorter than the run."""
    whole = earlier(2.0, steps=40, besides=8.0)  # 88 seconds
    first_of_three = with_attempts(whole, (20, 60.0)).model_copy(update={"resumed": None})
    found = predicted_seconds(first_of_three, 5_000, 4)
    assert found is not None and found <= 5_000 / 50 + 3 * 8 + 1


def test_steps_of_which_nothing_more_is_known_were_steps_all_the_same() -> None:
    """Of a long run only the latest are read."""
    whole = earlier(2.0, steps=400)
    latest = whole.model_copy(update={"times": whole.times[-300:], "rates": whole.rates[-300:]})
    assert predicted_seconds(latest, 5_000, evaluations=2) == pytest.approx(5_000 / 50 + 30, rel=0.15)


def test_a_run_of_a_few_steps_tells_nothing() -> None:
    assert predicted_seconds(earlier(2.0, steps=4), 5_000, evaluations=2) is None


def test_the_first_difference_decides_how_alike_two_runs_are() -> None:
    assert alike(("full", True, 4), ("full", True, 4)) == 3
    assert alike(("full", True, 4), ("full", False, 4)) == 1
    assert alike(("full", True, 4), ("4-bit", True, 4)) == 0


def test_a_run_sees_its_rows_as_often_as_its_epochs_or_its_steps_say() -> None:
    assert tokens_seen(90, 9, rows_a_step=20, epochs=2, tokens_a_row=10) == 1_800
    assert tokens_seen(90, 3, rows_a_step=20, epochs=2, tokens_a_row=10) == 600


@pytest.mark.parametrize(
    ("predicted", "said"),
    [(4_000_000_000, "4.00 GB, as predicted"), (5_000_000_000, "20 % less"), (3_000_000_000, "33 % more")],
)
def test_the_run_page_says_how_far_off_the_predicted_peak_was(predicted: int, said: str) -> None:
    assert said in measured_text(4_000_000_000, predicted)
    assert "predicted" not in measured_text(4_000_000_000, None)
