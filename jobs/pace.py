"""Seconds that a run will take, from an earlier one of the same kind on this machine: its tokens a second, and what it
took besides its steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from jobs.frozen import Frozen

_LEAST = 5  # steps that an earlier run must have taken to say anything
_ODD = 4.0  # times the usual seconds: checkpoints, compiling


class Earlier(Frozen):
    """An earlier run: after each step its time (seconds since the epoch) and the rate that was told (tokens a second),
    when evaluations were told, and the steps and seconds of the whole run, all its attempts together. `resumed`: when
    the last of them began, where there were several."""

    times: tuple[float, ...]
    rates: tuple[float, ...]
    evaluated: tuple[float, ...]
    steps: int
    seconds: float
    resumed: float | None = None


def predicted_seconds(earlier: Earlier, tokens: float, evaluations: int, slower: float = 1.0) -> float | None:
    """How long a run over so many tokens takes; None where the earlier one took too few steps.

    Each evaluation is taken to pause it as long as those that stood between two steps usually did. What else the
    earlier one took besides its steps (loading, measuring before them, the last evaluation, saving) is taken to come
    again. `evaluations`: how many this one makes, 0 where it keeps no rows aside. `slower`: how many times as long it
    takes for a token, to save memory.
    """
    steps, pauses = [], []
    for before, after, rate in zip(earlier.times, earlier.times[1:], earlier.rates[1:], strict=False):
        apart = after - before
        # Between two attempts nothing was trained, for hours maybe. Of those before the last it is not known when they
        # began; only that no pause is longer than the training.
        if apart > earlier.seconds or (earlier.resumed and before <= earlier.resumed <= after):
            continue
        if any(before <= told <= after for told in earlier.evaluated):
            pauses.append(apart)
        elif apart > 0:
            steps.append((apart, rate))
    if len(steps) < _LEAST:
        return None
    usual = statistics.median(seconds for seconds, _ in steps)
    known = [(seconds, rate) for seconds, rate in steps if seconds <= _ODD * usual]
    spent = sum(seconds for seconds, _ in known)
    rate = sum(seconds * rate for seconds, rate in known) / spent
    a_step = spent / len(known)
    besides = max(0.0, earlier.seconds - earlier.steps * a_step)
    pause = 0.0
    if pauses:  # all together they took no more than the run did besides its steps
        pause = min(max(0.0, statistics.median(pauses) - a_step), besides / len(pauses))
    once = besides - pause * len(pauses)
    return slower * tokens / rate + max(0, evaluations - 1) * pause + once if rate > 0 else None


def tokens_seen(train_rows: int, steps: int, rows_a_step: int, epochs: float, tokens_a_row: float) -> float:
    """Of a whole run, padding left out."""
    return min(steps * rows_a_step, train_rows * epochs) * tokens_a_row


def alike(one: Sequence[object], other: Sequence[object]) -> int:
    """How many of the things that decide a run's speed two runs have in common, the weightiest first; the rest after
    the first difference does not count."""
    same = 0
    for ours, theirs in zip(one, other, strict=True):
        if ours != theirs:
            break
        same += 1
    return same
