"""Chat templates for models that have none, or that are to be taught another.

One function, `with_template`, gives a tokenizer the template that a task's settings choose; preview, check, training
and playground all call it, and a trained adapter carries the template as chat_template.jinja. No token is ever added:
a mark that the tokenizer lacks is written as plain text, and a turn's end as the tokenizer's own end token.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.frozen import Frozen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Choice = Literal["the model's own", "ChatML", "Llama 3", "Mistral", "Gemma", "Alpaca", "User and Assistant"]
OWN: Choice = "the model's own"
USUAL: Choice = "ChatML"  # where the model has none of its own
FILE = "chat_template.jinja"
_END = "@END@"  # where a template's end of turn stands


class Templated(Frozen):
    """The setting of every task whose rows are conversations."""

    template: Choice = Field(
        OWN,
        title="Chat template",
        description="How a conversation is written for the model. Choose one where the model has none of its own.",
    )


@dataclass(frozen=True)
class _Template:
    text: str
    end: str  # the end of a turn; "" where it is the tokenizer's end token in any case
    marks: tuple[str, ...] = ()  # the other special tokens that it writes


_TEMPLATES: dict[str, _Template] = {
    "ChatML": _Template(  # tools as Qwen writes them
        "{%- if tools %}{{ '<|im_start|>system\\n' }}{% if messages[0].role == 'system' %}"
        "{{ messages[0].content + '\\n\\n' }}{% endif %}"
        "{{ '# Tools\\n\\nYou may call these functions, each given within <tools></tools>:\\n<tools>' }}"
        "{% for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}"
        "{{ '\\n</tools>\\n\\nTo call one, write a JSON object with its name and arguments:\\n<tool_call>\\n"
        '{"name": <name>, "arguments": <arguments>}'
        "\\n</tool_call>@END@\\n' }}{% endif %}"
        "{%- for m in messages %}{% if m.role == 'system' and tools and loop.first %}{% elif m.role == 'tool' %}"
        "{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response>@END@\\n' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% for call in m.tool_calls or [] %}"
        "{{ ('\\n' if m.content or not loop.first else '') + '<tool_call>\\n{\"name\": \"' + call.function.name "
        "+ '\", \"arguments\": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}"
        "{{ '@END@\\n' }}{% endif %}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>",
        ("<|im_start|>",),
    ),
    "Llama 3": _Template(
        "{{- bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n'"
        " + m.content + '@END@' }}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        "<|eot_id|>",
        ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "Mistral": _Template(
        "{{- bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + '@END@' }}{% endif %}{% endfor %}",
        "",
    ),
    "Gemma": _Template(
        "{{- bos_token }}{% for m in messages %}{% if m.role != 'system' %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content + '@END@\\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        "<end_of_turn>",
        ("<start_of_turn>",),
    ),
    "Alpaca": _Template(
        "{{- bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}"
        "{% elif m.role == 'assistant' %}{{ '### Response:\\n' + m.content + '@END@\\n\\n' }}"
        "{% else %}{{ '### Instruction:\\n' + m.content + '\\n\\n' }}{% endif %}{% endfor %}"
        "{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
        "",
    ),
    "User and Assistant": _Template(
        "{{- bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}"
        "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + '@END@\\n' }}"
        "{% else %}{{ 'User: ' + m.content + '\\n' }}{% endif %}{% endfor %}"
        "{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}",
        "",
    ),
}


def with_template(tokenizer: PreTrainedTokenizerBase, params: Any) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template that a task's settings choose; itself where they leave the model its own.

    A copy that shares its vocabulary: the given one, which others may be using, keeps its template.
    """
    choice = getattr(params, "template", OWN)
    return tokenizer if choice == OWN else _dressed(tokenizer, source(tokenizer, choice))


def of_adapter(tokenizer: PreTrainedTokenizerBase, adapter: Path) -> PreTrainedTokenizerBase:
    """The tokenizer as the adapter in this folder was trained with it: with the chat template that it carries."""
    try:
        template = (adapter / FILE).read_text("utf-8")
    except OSError:
        return tokenizer
    return tokenizer if template == tokenizer.chat_template else _dressed(tokenizer, template)


def save(tokenizer: PreTrainedTokenizerBase, params: Any, adapter: Path) -> None:
    """Put the chosen template beside an adapter's weights, where every reader of the folder looks for it; nothing where
    the model's own was trained. `tokenizer`: as `with_template` gave it."""
    if getattr(params, "template", OWN) != OWN:
        (adapter / FILE).write_text(str(tokenizer.chat_template), "utf-8")


def source(tokenizer: PreTrainedTokenizerBase, choice: str) -> str:
    """The chosen template as Jinja text, its end of turn settled for this tokenizer."""
    template = _TEMPLATES[choice]
    return template.text.replace(_END, _end(tokenizer, template))


def notes(tokenizer: PreTrainedTokenizerBase, params: Any) -> list[str]:
    """What the chosen template means for this tokenizer, where that is not plain."""
    choice = getattr(params, "template", OWN)
    if choice == OWN:
        return []
    template = _TEMPLATES[choice]
    lacking = [mark for mark in template.marks if not _is_special(tokenizer, mark)]
    end = _end(tokenizer, template)
    said = []
    if lacking:
        said.append(f"This model has no tokens for {' and '.join(lacking)}: they are written as plain text.")
    if template.end and end != template.end and end:
        said.append(f"An answer ends with the model's own end token, {end}, in place of {template.end}.")
    if not _is_special(tokenizer, end):
        said.append("This model has no end token, so it may not learn to stop.")
    return said


def problem(params: Any, has_chat_template: bool) -> str | None:
    """Why conversations cannot be written for this model; None where they can."""
    if has_chat_template or getattr(params, "template", OWN) != OWN:
        return None
    return (
        "This base model has no chat template, so it does not know what a conversation looks like. Choose one under "
        "Chat template (ChatML if you have no other wish), an instruct (chat) model, or map one column as plain text."
    )


def _dressed(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    dressed = copy.copy(tokenizer)
    dressed.chat_template = template
    return dressed


def _end(tokenizer: PreTrainedTokenizerBase, template: _Template) -> str:
    if template.end and _is_special(tokenizer, template.end):
        return template.end
    return str(tokenizer.eos_token) if tokenizer.eos_token else template.end


def _is_special(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the text is one token that no ordinary text makes."""
    if not text:
        return False
    token = tokenizer.convert_tokens_to_ids(text)
    return token in tokenizer.added_tokens_decoder or token in tokenizer.all_special_ids
