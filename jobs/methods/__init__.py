"""Fine-tuning methods, one class each. `all_methods` finds them; adding one touches one file."""

from __future__ import annotations

from functools import cache

from jobs.errors import UserError
from jobs.methods.base import Method


@cache
def all_methods() -> dict[str, Method]:
    """Every method by name, in the order the form shows them."""
    import jobs.methods as package
    from jobs.registry import collect

    return collect(package, Method)


def method(name: str) -> Method:
    """Raises UserError for a name that is none."""
    try:
        return all_methods()[name]
    except KeyError:
        raise UserError(f"There is no method {name!r}. Choose one of: {', '.join(all_methods())}.") from None
