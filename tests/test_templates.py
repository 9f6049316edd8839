"""Chat templates that a person chooses: as training, preview and playground see them, saved with the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from jobs.data import templates
from jobs.data.columns import Mapping, Shape
from jobs.data.rendering import end_tokens, prompt_text, render_answers
from jobs.data.templates import OWN, Choice, of_adapter, with_template
from jobs.errors import RowProblem
from jobs.events import Answers
from jobs.inference.protocol import Row
from jobs.inference.sampling import Sampling
from jobs.tasks import task
from tests import rundirs, tiny
from tests.test_engine import load_engine, run
from tests.test_tasks import tokenizer, trained
from tests.tiny import TEMPLATE

CHAT = task("chat")
MAPPING = Mapping(shape=Shape.MESSAGES, columns={"messages": "messages", "tools": "tools"})
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "the fox?"},
    {"role": "assistant", "content": "jumps"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "over"},
]
CHOICES = [choice for choice in get_args(Choice) if choice != OWN]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_template_trains_the_answers_and_their_end_and_shows_the_system_turn(choice: Any) -> None:
    plain = tokenizer(None)
    params = CHAT.Params(template=choice)
    dressed = with_template(plain, params)
    encoded = CHAT.encode({"messages": TURNS}, MAPPING, dressed, params)
    assert [text.strip() for text in trained(encoded)] == ["jumps<|im_end|>", "over<|im_end|>"]
    assert encoded.untrained_answers == 0
    assert "be kind" in encoded.text
    given = dressed(prompt_text(dressed, TURNS[:-1]), add_special_tokens=False)["input_ids"]
    assert encoded.input_ids[: len(given)] == given
    assert dressed.eos_token_id in end_tokens(dressed, None)
    assert plain.chat_template is None and len(dressed) == len(plain)  # the given one is as it was; no token is new


def test_the_models_own_template_stays_unless_another_is_chosen() -> None:
    own = tokenizer(TEMPLATE)
    assert with_template(own, CHAT.Params()) is own
    assert "### Instruction:\nthe fox?" in prompt_text(with_template(own, CHAT.Params(template="Alpaca")), TURNS[1:2])
    assert own.chat_template == TEMPLATE


def test_marks_that_the_tokenizer_lacks_are_text_and_that_is_said() -> None:
    plain = tokenizer(None)
    assert templates.notes(plain, CHAT.Params(template="ChatML")) == []
    said = templates.notes(plain, CHAT.Params(template="Llama 3"))
    assert "no tokens for <|start_header_id|> and <|end_header_id|>" in said[0]
    assert "<|im_end|>, in place of <|eot_id|>" in said[1]
    assert "<|eot_id|>" not in prompt_text(with_template(plain, CHAT.Params(template="Llama 3")), TURNS[:2])


def test_without_a_template_the_task_asks_for_one() -> None:
    assert "Choose one under Chat template" in CHAT.check_data(CHAT.Params(), MAPPING, False)[0]
    assert CHAT.check_data(CHAT.Params(template="ChatML"), MAPPING, False) == []


def test_an_adapters_own_template_is_used_again(tmp_path: Path) -> None:
    plain = tokenizer(None)
    assert of_adapter(plain, tmp_path) is plain
    (tmp_path / templates.FILE).write_text(templates.source(plain, "Gemma"), "utf-8")
    chosen = with_template(plain, CHAT.Params(template="Gemma"))
    assert prompt_text(of_adapter(plain, tmp_path), TURNS[1:2]) == prompt_text(chosen, TURNS[1:2])


def test_what_is_trained_with_a_chosen_template_is_asked_with_it(tmp_path: Path) -> None:
    base = tiny.build_llama(tmp_path / "base", template=None)
    files = rundirs.make_run(
        tmp_path / "run", base, prompts=("Where is ship 3?",), task_params={"template": "User and Assistant"}
    )
    assert rundirs.train_here(files).state == "completed"
    assert "Assistant:" in (files.adapter / templates.FILE).read_text("utf-8")
    told = [event.answers[0] for event in rundirs.events(files) if isinstance(event, Answers)]
    engine = load_engine(base)
    asked = ({"role": "user", "content": "Where is ship 3?"},)
    row = Row(adapter=files.adapter, messages=asked, sampling=Sampling(temperature=0, max_tokens=48))
    assert engine.tokenizer_for(row).chat_template and not engine.loaded.tokenizer.chat_template
    assert run(engine, [row])[0].text.strip() in [answer.tuned for answer in told]


CALLING: list[dict[str, Any]] = [
    {"role": "user", "content": "How warm is it in Rome?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"in": "Rome"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "20 degrees"},
    {"role": "assistant", "content": "It is 20 degrees."},
]
OFFERED = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def test_tool_calls_are_trained_through_a_template_that_has_a_place_for_them() -> None:
    params = CHAT.Params(template="ChatML")
    row = {"messages": CALLING, "tools": OFFERED}
    encoded = CHAT.encode(row, MAPPING, with_template(tokenizer(None), params), params)
    call = '<tool_call>\n{"name": "weather", "arguments": {"in": "Rome"}}\n</tool_call><|im_end|>'
    assert [text.strip() for text in trained(encoded)] == [call, "It is 20 degrees.<|im_end|>"]
    assert '"parameters": {"type": "object"}' in encoded.text
    assert "<tool_response>\n20 degrees\n</tool_response>" in encoded.text
    with pytest.raises(RowProblem, match="calls tools, and the model's chat template has no place for that"):
        CHAT.encode(row, MAPPING, tokenizer(TEMPLATE), CHAT.Params())


def test_an_answer_of_weight_0_is_read_but_not_trained() -> None:
    turns = [dict(turn) for turn in TURNS]
    turns[2]["weight"] = 0
    own = tokenizer(TEMPLATE)
    encoded = CHAT.encode({"messages": turns}, MAPPING, own, CHAT.Params())
    assert trained(encoded) == ["over<|im_end|>"] and encoded.untrained_answers == 0
    turns[2].pop("weight")
    turns[4]["weight"] = 0
    assert trained(CHAT.encode({"messages": turns}, MAPPING, own, CHAT.Params())) == ["jumps<|im_end|>"]
    with pytest.raises(RowProblem, match="last answer has the weight 0"):
        render_answers(own, turns, last_only=True)
