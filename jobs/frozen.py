"""The base of every value that crosses a boundary: frozen, strict about unknown names."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
