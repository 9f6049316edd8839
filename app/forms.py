"""Pydantic fields to widgets and back: the only place that knows how a setting looks.

A field's type and limits choose its widget, its title is the label, its description the line under it. Nobody writes
a form by hand: a new setting appears by being declared. `json_schema_extra={"labels": {value: words}}` on a Literal
field gives its choices better words; `"zero": words` says at the label what 0 means; `"advanced": True` puts a field
below the others, in a section of its own; `"where": {other: values}` shows it, among `Forms`, only where another field
has one of these values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from jobs.errors import UserError
from jobs.fields import applies, extra_of, label_of, limits_of, number_text, problems_of, title_of, zero_of

Model = TypeVar("Model", bound=BaseModel)

RADIO_CHOICES = 4  # more than these are a dropdown
LONG_TEXT = 200  # a text that may be longer gets several lines


class Form(Generic[Model]):
    """The widgets of one model, drawn into the layout that is open when it is made.

    `components` go into an event's inputs; `values` turns what the event brings into plain settings, `read` into the
    model itself; `show` gives what the widgets should display, in the same order.
    """

    def __init__(self, kind: type[Model], *, without: Iterable[str] = ()) -> None:
        self.kind = kind
        left_out = set(without)
        fields = {name: field for name, field in kind.model_fields.items() if name not in left_out}
        plain = {name: field for name, field in fields.items() if not extra_of(field).get("advanced")}
        advanced = {name: field for name, field in fields.items() if name not in plain}
        self._widgets: dict[str, Component] = {}
        self._draw(plain)
        if advanced:
            with gr.Accordion("Advanced", open=False):
                self._draw(advanced)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._widgets)

    @property
    def components(self) -> list[Component]:
        return list(self._widgets.values())

    def __getitem__(self, name: str) -> Component:
        return self._widgets[name]

    def add(self, name: str) -> Component:
        """Draw one field that was left out here, where the page wants it; it belongs to the form all the same."""
        self._widgets[name] = widget(name, self.kind.model_fields[name])
        return self._widgets[name]

    def values(self, brought: Sequence[Any]) -> dict[str, Any]:
        """What the widgets hold, by field name: numbers as numbers where they are, otherwise as they were typed."""
        return {
            name: plain(self.kind.model_fields[name], value) for name, value in zip(self.names, brought, strict=True)
        }

    def read(self, brought: Sequence[Any]) -> Model:
        """The checked model. Raises UserError with every problem."""
        try:
            return self.kind(**self.values(brought))
        except ValidationError as error:
            raise UserError(*problems_of(self.kind, error)) from error

    def show(self, settings: Mapping[str, Any] | Model) -> list[Any]:
        """What each widget should display; fields that `settings` lacks show their default."""
        given = settings.model_dump() if isinstance(settings, BaseModel) else settings
        return [
            shown(field, given.get(name, field.get_default(call_default_factory=True)))
            for name, field in ((name, self.kind.model_fields[name]) for name in self.names)
        ]

    def _draw(self, fields: Mapping[str, FieldInfo]) -> None:
        with gr.Row(elem_classes="form-grid"):
            for name, field in fields.items():
                self._widgets[name] = widget(name, field)


class Forms:
    """The widgets of several models of which one is chosen at a time: a form for each method, a form for each task.

    Fields that are declared alike share a widget, so that twenty-five methods have few more widgets than three: each
    widget weighs on the page, and every event carries all of them. `show` makes one model's widgets visible, fills
    them, and hides the rest. Fields named in `apart` are drawn by `draw_apart`, where the page wants them.
    """

    def __init__(self, kinds: Mapping[str, type[BaseModel]], *, apart: Iterable[str] = ()) -> None:
        self._kinds = dict(kinds)
        self._apart = set(apart)
        self._slots: dict[str, dict[str, str]] = {}  # a model's name: its fields, and the widget of each
        self._fields: dict[str, tuple[str, FieldInfo]] = {}  # a widget's key: the field as it was declared first
        for name in self._kinds:
            self._place(name)
        self._widgets: dict[str, Component] = {}
        self._advanced: gr.Accordion | None = None
        here = [key for key in self._fields if self._fields[key][0] not in self._apart]
        later = [key for key in here if extra_of(self._fields[key][1]).get("advanced")]
        self._draw([key for key in here if key not in later])
        if later:
            with gr.Accordion("Advanced", open=False, visible=False) as self._advanced:
                self._draw(later)
        self._later = frozenset(later)

    def draw_apart(self) -> None:
        """The fields that were left out, into the layout that is open."""
        self._draw([key for key, (name, _) in self._fields.items() if name in self._apart])

    @property
    def components(self) -> list[Component]:
        return list(self._widgets.values())

    @property
    def outputs(self) -> list[Any]:
        """What `show` changes."""
        return [*self.components, *([self._advanced] if self._advanced else [])]

    def values(self, name: str, brought: Sequence[Any]) -> dict[str, Any]:
        """What the widgets hold of one model, by field name, from the values of all `components`."""
        held = dict(zip(self._widgets, brought, strict=True))
        found = {
            field: plain(self._kinds[name].model_fields[field], held[key])
            for field, key in self._slots.get(name, {}).items()
        }
        # What was left empty where nobody sees it stands for its default.
        return {
            field: value
            for field, value in found.items()
            if value is not None or applies(self._kinds[name], field, found)
        }

    def show(self, name: str | None, settings: Mapping[str, Any], *, fresh: bool = False) -> dict[Any, Any]:
        """One model's widgets with these settings (its defaults for the rest), every other hidden; None hides all.

        `fresh`: the page has just been drawn, so that none is to be hidden: each update costs a page its time.
        """
        slots = self._slots.get(name or "", {})
        shows: dict[Any, Any] = {} if fresh else {widget: gr.update(visible=False) for widget in self.components}
        for field, key in slots.items():
            declared = self._kinds[str(name)].model_fields[field]
            value = settings.get(field, declared.get_default(call_default_factory=True))
            visible = applies(self._kinds[str(name)], field, settings)
            shows[self._widgets[key]] = gr.update(visible=visible, value=shown(declared, value))
        if self._advanced:
            shows[self._advanced] = gr.update(visible=not self._later.isdisjoint(slots.values()))
        return shows

    @property
    def following(self) -> list[Component]:
        """What `follow` changes."""
        return [self._widgets[key] for key, (_, field) in self._fields.items() if "where" in extra_of(field)]

    def follow(self, name: str, settings: Mapping[str, Any]) -> dict[Any, Any]:
        """One model's widgets that are shown for some values of others, as those stand now."""
        slots = self._slots.get(name, {}).items()
        mine = {self._widgets[key]: field for field, key in slots if "where" in extra_of(self._fields[key][1])}
        return {
            widget: gr.update(visible=applies(self._kinds[name], field, settings)) for widget, field in mine.items()
        }

    def _place(self, name: str) -> None:
        """Give each field of a model its widget; a new one stands behind the model's field before it."""
        order, at = list(self._fields), -1
        self._slots[name] = {}
        for field, declared in self._kinds[name].model_fields.items():
            key = _declaration(field, declared)
            self._slots[name][field] = key
            if key not in self._fields:
                order.insert(at + 1, key)
                self._fields[key] = (field, declared)
            at = max(at, order.index(key))
        self._fields = {key: self._fields[key] for key in order}

    def _draw(self, keys: Sequence[str]) -> None:
        with gr.Row(elem_classes="form-grid") if keys else nullcontext():
            for key in keys:
                self._widgets[key] = widget(*self._fields[key], visible=False)


def _declaration(name: str, field: FieldInfo) -> str:
    """Two fields with the same one look alike, whatever their defaults."""
    said = (name, field.annotation, field.title, field.description, limits_of(field), extra_of(field), _is_small(field))
    return repr(said)


def widget(name: str, field: FieldInfo, visible: bool = True) -> Component:
    """The widget of one field, showing its default.

    Raises TypeError for a type that has none, which the test over every method and task finds.
    """
    kind, limits = field.annotation, limits_of(field)
    value = shown(field, field.get_default(call_default_factory=True))
    words: dict[str, Any] = {
        "label": f"{title_of(name, field)} (0: {zero_of(field)})" if zero_of(field) else title_of(name, field),
        "info": field.description,
        "value": value,
        "interactive": True,
        "visible": visible,
        "elem_classes": ["field", field_class(name)],
    }
    if get_origin(kind) is Literal:
        choices = [(label_of(field, choice), choice) for choice in get_args(kind)]
        return gr.Radio(choices, **words) if len(choices) <= RADIO_CHOICES else gr.Dropdown(choices, **words)
    if kind is bool:
        return gr.Checkbox(**words)
    if kind is int:
        return gr.Number(step=1, **words)
    if kind is float:
        low, high = limits.get("ge", limits.get("gt")), limits.get("le")
        if low is None or high is None:
            return gr.Number(step=0.1, **words)
        if _is_small(field):
            return gr.Textbox(max_lines=1, html_attributes=gr.InputHTMLAttributes(spellcheck=False), **words)
        if high - low <= 2:
            step = 0.01 if high - low <= 1 else 0.05
            return gr.Slider(low if "ge" in limits else low + step, high, step=step, **words)
        return gr.Number(step=0.5, **words)
    if kind is str:
        long = limits.get("max_length", 0) > LONG_TEXT
        return gr.Textbox(lines=3 if long else 1, max_lines=12 if long else 1, **words)
    raise TypeError(f"{name}: no widget for {kind!r}")


def field_class(name: str) -> str:
    """The CSS class by which a page finds a field's widget."""
    return f"field-{name.replace('_', '-')}"


def shown(field: FieldInfo, value: Any) -> Any:
    """A setting as its widget displays it. Small numbers are text: 0.0002 is typed more easily than spun."""
    return number_text(value) if _is_small(field) and isinstance(value, int | float) else value


def plain(field: FieldInfo, value: Any) -> Any:
    """What a widget holds as a setting: text that is a number becomes one, a whole number is an int."""
    if field.annotation not in (int, float) or value is None or isinstance(value, bool):
        return value
    try:
        number = float(value.strip().replace(",", ".")) if isinstance(value, str) else float(value)
    except ValueError:
        return value
    return int(number) if field.annotation is int and number.is_integer() else number


def _is_small(field: FieldInfo) -> bool:
    """A bounded number whose usual value is a tiny part of its range, like a learning rate."""
    limits = limits_of(field)
    default = field.get_default(call_default_factory=True)
    return field.annotation is float and "le" in limits and bool(default) and default < limits["le"] / 200
