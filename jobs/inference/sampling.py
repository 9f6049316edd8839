"""How an answer is drawn."""

from __future__ import annotations

from pydantic import Field

from jobs.frozen import Frozen


class Sampling(Frozen):
    system: str = Field(
        "",
        max_length=20_000,
        title="System prompt",
        description="Said to the model before the conversation. Empty: the model's own template decides.",
    )
    temperature: float = Field(
        0.7,
        ge=0,
        le=2,
        title="Temperature",
        description="0 always takes the likeliest token; higher is more varied.",
    )
    top_p: float = Field(
        0.95,
        gt=0,
        le=1,
        title="Top-p",
        description="Draws from the likeliest tokens that together have this probability.",
    )
    max_tokens: int = Field(256, ge=1, le=8192, title="Maximum tokens", description="Longest answer.")
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed", description="Same seed and settings: the same answer.")
