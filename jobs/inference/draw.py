"""Drawing the next token of one row: temperature, top-p, and a generator of the row's own.

Rows never share a generator, so what a row draws does not depend on who else is in the batch.
"""

from __future__ import annotations

import torch

from jobs.inference.sampling import Sampling

_FIRST_LOOK = 256  # sorting 50,000 probabilities costs more than the draw; the likeliest 256 nearly always suffice


def generator(seed: int) -> torch.Generator:
    """On the CPU whatever the model runs on: the same seed gives the same draws everywhere."""
    return torch.Generator().manual_seed(seed)


def draw(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """One token id from `logits` [vocabulary].

    Temperature 0 takes the likeliest. Otherwise the tokens are ordered by probability, cut where they together reach
    `top_p` (Holtzman et al. 2020; the token that crosses the line stays), and one uniform number picks among them.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits.float()
    probabilities = torch.softmax((logits - logits.max()) / sampling.temperature, dim=-1)
    uniform = float(torch.rand((), generator=random, dtype=torch.float64))
    for k in (min(_FIRST_LOOK, len(probabilities)), len(probabilities)):
        likeliest, tokens = probabilities.topk(k)
        together = likeliest.double().cumsum(-1).cpu()
        if sampling.top_p < 1:
            last = int(torch.searchsorted(together, sampling.top_p))
            if last >= k and k < len(probabilities):
                continue
            together = together[: last + 1]
            goal = uniform * float(together[-1])
        else:
            goal = uniform
            if goal >= float(together[-1]) and k < len(probabilities):
                continue
        chosen = min(int(torch.searchsorted(together, goal, right=True)), len(together) - 1)
        return int(tokens[chosen])
    raise AssertionError("the second look holds every token")
