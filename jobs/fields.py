"""Settings in words: what pydantic found wrong with a form, said with the titles and limits of its own fields.

The form's labels, the planner's problems and the playground's all speak through here, so that they agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo


def title_of(name: str, field: FieldInfo) -> str:
    """A field's name as the form shows it."""
    return field.title or name.replace("_", " ").capitalize()


def extra_of(field: FieldInfo) -> dict[str, Any]:
    """What a field declares besides its type and limits."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def label_of(field: FieldInfo, value: Any) -> str:
    """One choice of a Literal field as the form shows it: its declared label, else the value made readable."""
    if label := extra_of(field).get("labels", {}).get(value):
        return str(label)
    text = str(value).replace("-", " ").replace("_", " ")
    return text.upper() if len(text) <= 3 else text[:1].upper() + text[1:]


def zero_of(field: FieldInfo) -> str:
    """What 0 means, where it is no amount: "off", "no limit"."""
    return str(extra_of(field).get("zero", ""))


def applies(kind: type[BaseModel], name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a field means something beside these settings, by field name: others have values that it goes with."""
    fields = kind.model_fields
    return all(
        settings.get(other, fields[other].get_default(call_default_factory=True)) in values
        for other, values in extra_of(fields[name]).get("where", {}).items()
    )


def limits_of(field: FieldInfo) -> dict[str, Any]:
    """A field's limits by pydantic's names: ge, gt, le, lt, max_length; those it has."""
    found: dict[str, Any] = {}
    for constraint in field.metadata:
        for limit in ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if (value := getattr(constraint, limit, None)) is not None:
                found[limit] = value
    return found


def number_text(value: float) -> str:
    """0.0002 rather than 2e-04; 1e-09 rather than a row of zeros."""
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return str(int(value))
    return f"{value:.10f}".rstrip("0") if abs(value) >= 1e-6 else f"{value:g}"


def problems_of(kind: type[BaseModel], error: ValidationError) -> list[str]:
    """One sentence a finding: which setting, what it was set to, what it may be."""
    return [_problem(kind, item) for item in error.errors()]


def _problem(kind: type[BaseModel], item: Any) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    field = kind.model_fields.get(name)
    if field is None:
        return f"There is no setting {name!r}." if name else f"{item['msg']}."
    title, value = title_of(name, field), item["input"]
    if value is None or value == "" or item["type"] == "missing":
        return f"{title} is empty. {_wanted(field)}"
    shown = number_text(value) if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
    return f"You set {title} to {shown}: {_wanted(field, item)}"


def _wanted(field: FieldInfo, item: Any = None) -> str:
    """What the field takes; where one limit was broken, that limit alone."""
    limits = limits_of(field)
    broken = item["type"] if item else ""
    said = {
        "less_than_equal": f"the most is {_limit(limits, 'le')}.",
        "less_than": f"it must be below {_limit(limits, 'lt')}.",
        "greater_than_equal": f"the least is {_limit(limits, 'ge')}.",
        "greater_than": f"it must be more than {_limit(limits, 'gt')}.",
        "string_too_long": f"the most is {_limit(limits, 'max_length')} characters.",
        "int_from_float": "it must be a whole number.",
    }
    if broken in said:
        return said[broken]
    if get_origin(field.annotation) is Literal:
        return f"choose one of {', '.join(map(str, get_args(field.annotation)))}."
    if field.annotation in (int, float):
        number = "a whole number" if field.annotation is int else "a number"
        low = f" from {_limit(limits, 'ge')}" if "ge" in limits else ""
        low = low or (f" above {_limit(limits, 'gt')}" if "gt" in limits else "")
        high = f" up to {_limit(limits, 'le')}" if "le" in limits else ""
        return f"{'it must be' if item else 'Give'} {number}{low}{high}."
    return f"{item['msg'][0].lower()}{item['msg'][1:]}." if item else "Give a value."


def _limit(limits: dict[str, Any], name: str) -> str:
    return number_text(limits[name]) if name in limits else "?"
