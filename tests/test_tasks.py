"""Rows to tokens, and which of them are trained: through chat templates of every temper."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from jobs.data.columns import Mapping, Shape
from jobs.data.rendering import _render, prompt_text
from jobs.errors import RowProblem
from jobs.tasks import all_tasks, task
from jobs.tasks.base import Encoded
from tests.tiny import TEMPLATE, build_tokenizer

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
    " + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
IGNORES_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN3 = (  # the last answer gets a thought, earlier ones lose theirs
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set said = m.content.split('</think>')[-1].lstrip('\\n') %}{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.index0 > ns.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ said + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
OPENS_A_THOUGHT = TEMPLATE.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
REWRITES_THE_QUESTION = (  # what stands before an answer changes with what comes after it
    "{% for m in messages %}{{ m.role + ' ' + (messages | length | string) + ': ' + m.content + '\\n' }}{% endfor %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

MAPPING = Mapping(shape=Shape.MESSAGES, columns={"messages": "messages"})
ROW: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "the fox?"},
        {"role": "assistant", "content": "jumps"},
        {"role": "user", "content": "jumps?"},
        {"role": "assistant", "content": "over the dog é"},
    ]
}


@cache
def tokenizer(template: str | None) -> Any:
    return build_tokenizer(template)


def encode(template: str, row: dict[str, Any] = ROW, **params: Any) -> Encoded:
    chat = task("chat")
    return chat.encode(row, MAPPING, tokenizer(template), chat.Params(**params))


def trained(encoded: Encoded) -> list[str]:
    """The texts of the runs of trained tokens."""
    runs: list[list[tuple[int, int]]] = []
    before = False
    for offset, on in zip(encoded.offsets, encoded.trained, strict=True):
        if on:
            runs[-1].append(offset) if before else runs.append([offset])
        before = on
    return [encoded.text[run[0][0] : run[-1][1]] for run in runs]


@pytest.mark.parametrize(
    ("template", "answers", "left"),
    [
        (TEMPLATE, ["jumps<|im_end|>", "over the dog é<|im_end|>"], 0),
        (SMOLLM2, ["jumps<|im_end|>", "over the dog é<|im_end|>"], 0),
        (LLAMA3, ["jumps<|eot_id|>", "over the dog é<|eot_id|>"], 0),
        (GEMMA, ["jumps<end_of_turn>", "over the dog é<end_of_turn>"], 0),
        (IGNORES_SYSTEM, [" jumps<|im_end|>", " over the dog é<|im_end|>"], 0),
        (GENERATION, ["jumps<|im_end|>", "over the dog é<|im_end|>"], 0),
        (QWEN3, ["<think>\n\n</think>\n\nover the dog é<|im_end|>"], 1),
        (OPENS_A_THOUGHT, ["over the dog é<|im_end|>"], 1),
        (REWRITES_THE_QUESTION, [" over the dog é"], 1),
    ],
)
def test_the_answers_with_their_end_marks_are_trained_and_nothing_else(
    template: str, answers: list[str], left: int
) -> None:
    encoded = encode(template)
    assert trained(encoded) == answers
    assert encoded.untrained_answers == left
    assert trained(encode(template, train_on="last answer")) == answers[-1:]
    assert encode(template, train_on="everything").trained[0]


@pytest.mark.parametrize("template", [TEMPLATE, SMOLLM2, LLAMA3, GEMMA, GENERATION, IGNORES_SYSTEM])
def test_what_stands_before_an_answer_is_what_the_model_will_be_given(template: str) -> None:
    encoded = encode(template)
    prompt = prompt_text(tokenizer(template), ROW["messages"][:-1])
    given = tokenizer(template)(prompt, add_special_tokens=False)["input_ids"]
    assert encoded.input_ids[: len(given)] == given
    assert encoded.trained[len(given)] and not encoded.trained[len(given) - 1]
    assert "be kind" in prompt  # also where the template knows no system turn


def test_the_beginning_is_not_doubled_and_special_tokens_are_never_masked_by_their_id() -> None:
    encoded = encode(SMOLLM2)
    tok = tokenizer(SMOLLM2)
    assert encoded.input_ids.count(tok.bos_token_id) == 5  # one a turn: <|im_start|> is this model's bos
    ends = [on for token, on in zip(encoded.input_ids, encoded.trained, strict=True) if token == tok.eos_token_id]
    assert ends == [False, False, True, False, True]


def test_a_batch_is_encoded_as_its_rows_alone() -> None:
    chat = task("chat")
    rows = [ROW, {"messages": []}, {"messages": ROW["messages"][1:3]}]
    batch = chat.encode_batch(rows, MAPPING, tokenizer(SMOLLM2), chat.Params())
    assert batch[0] == encode(SMOLLM2) and batch[2] == encode(SMOLLM2, rows[2])
    assert isinstance(batch[1], RowProblem)


def test_an_answer_beyond_the_maximum_length_is_a_problem_and_a_partial_one_is_cut() -> None:
    encoded = encode(TEMPLATE)
    first = encoded.trained.index(True)
    assert encoded.cut(10_000) is encoded
    assert encoded.cut(first + 1).trained == [False] * first + [True]
    with pytest.raises(RowProblem, match=rf"beyond the maximum length \(after {first} tokens; {first} are used\)"):
        encoded.cut(first)


def test_a_template_that_refuses_a_row_is_quoted() -> None:
    template = "{% if messages[0]['content'] == 'x' %}{{ raise_exception('No x, please.') }}{% endif %}" + TEMPLATE
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    with pytest.raises(RowProblem, match=r"chat template refuses it \(No x, please.\)"):
        encode(template, row)


@pytest.mark.parametrize("template", [TEMPLATE, SMOLLM2, LLAMA3, GEMMA, GENERATION, IGNORES_SYSTEM, QWEN3])
@pytest.mark.parametrize("prompt", [True, False])
def test_plain_turns_are_rendered_as_transformers_renders_them(template: str, prompt: bool) -> None:
    turns = ROW["messages"][1:]
    tok = tokenizer(template)
    whole = tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    assert _render(tok, turns, prompt) == whole
    assert _render(tok, [{**turn, "name": "x"} for turn in turns], prompt) == whole


def test_every_character_of_a_row_belongs_to_a_token() -> None:
    encoded = encode(TEMPLATE)
    assert encoded.offsets[0][0] == 0 and encoded.offsets[-1][1] == len(encoded.text)
    assert all(before[1] >= after[0] for before, after in zip(encoded.offsets, encoded.offsets[1:], strict=False))


def test_plain_text_is_trained_whole_with_the_end_token_and_needs_no_template() -> None:
    text = task("text")
    mapping = Mapping(shape=Shape.TEXT, columns={"text": "text"})
    encoded = text.encode({"text": "the quick fox"}, mapping, tokenizer(None), text.Params())
    assert all(encoded.trained)
    assert encoded.input_ids[-1] == tokenizer(None).eos_token_id
    assert text.prompt_messages({"text": "one two " * 20}, mapping)[0]["content"] == "one two " * 3 + "one two"
    with pytest.raises(RowProblem, match="is empty"):
        text.encode({"text": " "}, mapping, tokenizer(None), text.Params())


def test_a_beginning_token_that_the_tokenizer_adds_is_kept_once_and_not_trained() -> None:
    from tokenizers import processors

    tok = build_tokenizer(None)
    bos, eos = (tok.bos_token, tok.bos_token_id), (tok.eos_token, tok.eos_token_id)
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos[0]} $A {eos[0]}", special_tokens=[bos, eos]
    )
    text = task("text")
    mapping = Mapping(shape=Shape.TEXT, columns={"text": "text"})
    encoded = text.encode({"text": "the fox"}, mapping, tok, text.Params())
    assert encoded.input_ids.count(bos[1]) == encoded.input_ids.count(eos[1]) == 1
    assert encoded.trained == [False] + [True] * (len(encoded.trained) - 1)


def test_problems_of_task_and_model_are_told_before_any_row() -> None:
    chat, text = task("chat"), task("text")
    assert chat.check_data(chat.Params(), MAPPING, has_chat_template=True) == []
    assert "has no chat template" in chat.check_data(chat.Params(), MAPPING, has_chat_template=False)[0]
    assert "the dataset is mapped as messages" in text.check_data(text.Params(), MAPPING, has_chat_template=False)[0]


def test_every_shape_has_a_task_and_every_task_its_words() -> None:
    for shape in Shape:
        assert any(shape in each.shapes for each in all_tasks().values())
    for each in all_tasks().values():
        assert each.label and each.help and each.shapes
        for field in each.Params.model_fields.values():
            assert field.title and field.description


def test_every_token_that_ends_a_turn_is_known() -> None:
    from transformers import GenerationConfig

    from jobs.data.rendering import end_tokens

    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"  # as in models whose template ends a turn with another token
    ends = end_tokens(tokenizer, GenerationConfig(eos_token_id=[0, 5]))
    assert ends == {0, 5, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    stubborn = build_tokenizer("{{ raise_exception('Never.') }}")
    assert end_tokens(stubborn, None) == {stubborn.eos_token_id}
