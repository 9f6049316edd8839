"""How long the rest of the steps will take: a line through the latest ones, seconds by tokens.

Steps of one run differ in their tokens. On a small model each takes as long as launching its kernels takes; on a large
one, as its tokens need; mostly it is some of both. A line holds both, and what is left is known in steps and tokens.
"""

from __future__ import annotations

import statistics
from collections import deque

_LATEST = 64  # steps
_ODD = 4.0  # times the usual seconds: a step that compiled, recorded, or waited says nothing of the others


class Pace:
    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=_LATEST)
        self._only_odd = True

    def add(self, tokens: int, seconds: float, once: float = 0.0) -> None:
        """One step was taken. `once`: of its seconds those that no later step will take.

        Such a step counts only until there is another: on a GPU the step before it was computed meanwhile, so that what
        it took itself is not known.
        """
        if not once and self._only_odd:
            self._steps.clear()
            self._only_odd = False
        if not once or self._only_odd:
            self._steps.append((tokens, max(0.0, seconds - once)))

    def seconds(self, steps: int, tokens: float) -> float:
        """What so many further steps with so many tokens in all will take."""
        usual = statistics.median(seconds for _, seconds in self._steps)
        known = [(count, seconds) for count, seconds in self._steps if seconds <= _ODD * usual]
        mean_tokens = statistics.fmean(count for count, _ in known)
        mean_seconds = statistics.fmean(seconds for _, seconds in known)
        spread = sum((count - mean_tokens) ** 2 for count, _ in known)
        slope = 0.0
        if spread:
            slope = sum((count - mean_tokens) * (seconds - mean_seconds) for count, seconds in known) / spread
        # Neither a token nor a step takes less than no time.
        slope = min(max(slope, 0.0), mean_seconds / max(mean_tokens, 1))
        return max(0.0, steps * (mean_seconds - slope * mean_tokens) + slope * tokens)
