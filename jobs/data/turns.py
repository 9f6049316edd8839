"""One turn of a conversation as datasets write it, in the one form that chat templates take.

Roles and contents under all their usual names; tool calls as OpenAI, ShareGPT and their kin write them. What cannot be
read raises RowProblem. In which order turns may stand is jobs.data.conversation's.
"""

from __future__ import annotations

from typing import Any

from jobs.data.codec import loads
from jobs.errors import RowProblem

# "role" and "content"; where the data has them "reasoning_content", "tool_calls", "name" and "tool_call_id", and
# "weight": 0 on an answer that is read but not trained.
Turn = dict[str, Any]

ROLES = {
    **dict.fromkeys(("user", "human", "customer", "prompter", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "ai", "chatbot", "answer", "agent"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "call"),  # an assistant's turn that calls a tool
}
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message")
_NOT_TRAINED = {"weight": (0, 0.0, "0"), "train": (False, 0), "loss": (False, 0), "masked": (True, 1)}


def turn(item: Any, place: int) -> Turn:
    """One item of a list of turns, the `place`-th. Raises RowProblem."""
    if not isinstance(item, dict):
        raise RowProblem(f"a turn is not an object with a role and a content (turn {place}: {kind_of(item)})")
    said_by = next((item[key] for key in ROLE_KEYS if item.get(key) is not None), None)
    if said_by is None:
        raise RowProblem(f"a turn does not say whose it is (turn {place})")
    role = ROLES.get(said_by if isinstance(said_by, str) else "") or ROLES.get(str(said_by).strip().lower())
    if role is None:
        raise RowProblem(f"a turn has an unknown role (turn {place}: {str(said_by)[:40]!r})")
    content = next((item[key] for key in CONTENT_KEYS if item.get(key) is not None), None)
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(content, place)}
    calls = item.get("tool_calls") or item.get("function_call")
    if calls and role == "assistant":
        found: Turn = {"role": role, "content": _said(content, place) if content else ""}
        found["tool_calls"] = _calls(calls, place)
    elif content is None:
        raise RowProblem(f"a turn is null (turn {place})")
    else:
        found = {"role": role, "content": _said(content, place)}
    reasoning = item.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning.strip():
        found["reasoning_content"] = whole(reasoning)
    if role == "tool":
        found.update({key: item[key] for key in ("name", "tool_call_id") if isinstance(item.get(key), str)})
    elif role == "assistant" and any(key in item and item[key] in off for key, off in _NOT_TRAINED.items()):
        found["weight"] = 0
    return found


def tools_of(value: Any) -> list[dict[str, Any]]:
    """The tools that a row offers, as templates take them: a list of JSON schemas, or the text of one."""
    if isinstance(value, str):
        if not value.strip():
            return []
        try:
            value = loads(value)
        except (ValueError, RecursionError):
            raise RowProblem("its tools are text that does not hold a list of tools") from None
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RowProblem(f"its tools are not a list of objects ({kind_of(value)})")
    return [item if "function" in item else {"type": "function", "function": item} for item in value]


def whole(text: str) -> str:
    """Text that can be tokenised: JSON's escapes can smuggle in half a character."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RowProblem("it holds half a character (a lone surrogate)") from None
    return text


def kind_of(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "true or false" if isinstance(value, bool) else "null" if value is None else "a number or text"


def _said(content: Any, place: int) -> str:
    if isinstance(content, list):  # OpenAI's parts: [{"type": "text", "text": ...}]
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise RowProblem(f"a turn holds something other than text, such as an image (turn {place})")
        content = "".join(part["text"] for part in content)
    if isinstance(content, bool) or not isinstance(content, str | int | float):
        raise RowProblem(f"a turn is not text (turn {place}: {kind_of(content)})")
    text = whole(str(content))
    if not text.strip():
        raise RowProblem(f"a turn is empty (turn {place})")
    return text


def _calls(value: Any, place: int) -> list[dict[str, Any]]:
    """Tool calls as templates take them: arguments as an object, although OpenAI sends them as text."""
    value = _decoded(value)
    calls = []
    for item in value if isinstance(value, list) else [value]:
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowProblem(f"a tool call has no name (turn {place})")
        arguments = _decoded(function.get("arguments", function.get("parameters", {})))
        call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        if isinstance(item.get("id"), str):
            call["id"] = item["id"]
        calls.append(call)
    return calls


def _decoded(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return loads(value)
        except (ValueError, RecursionError):
            return value
    return value
