"""The engine: base and adapters in one batch give what each gives alone, streamed whole characters at a time."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import UserError
from jobs.inference.client import EngineClient
from jobs.inference.protocol import More, Row
from jobs.inference.sampling import Sampling
from jobs.rpc import ChildDied
from jobs.spec import BaseModelRef
from tests import tiny

GREEDY = Sampling(temperature=0, max_tokens=12)
QUESTION = ({"role": "user", "content": "the quick brown fox"},)
LONGER = ({"role": "user", "content": "jumps over the lazy dog, said the captain of the ship, and then again"},)


@pytest.fixture(scope="module")
def adapters(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [tiny.build_adapter(tiny_llama, folder / str(seed), seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Any:
    return load_engine(tiny_llama)


def load_engine(folder: Path) -> Any:
    from jobs.inference.engine import Engine
    from jobs.inference.load import load

    return Engine(load(str(folder), None, folder.name))


def run(engine: Any, rows: list[Row]) -> list[More]:
    """Every row's whole answer, as one More each."""
    batches, _ = engine.open(rows)
    texts, last = [""] * len(rows), [None] * len(rows)
    while not all(batch.done for batch in batches):
        for batch in batches:
            for more in batch.step() if not batch.done else ():
                texts[more.row] += more.text
                last[more.row] = more
    return [more.model_copy(update={"text": text}) for more, text in zip(last, texts, strict=True)]  # type: ignore[union-attr]


def plain_answer(base: Path, adapter: Path | None, messages: tuple[dict[str, Any], ...], tokens: int) -> str:
    """What transformers and PEFT generate by themselves, without a character that is cut off at the end."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    inputs = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.eval().generate(**inputs, max_new_tokens=tokens, do_sample=False)
    text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.rstrip("\ufffd")


def test_one_batch_answers_as_each_would_alone_in_plain_peft(
    engine: Any, adapters: list[Path], tiny_llama: Path
) -> None:
    cases = [(None, QUESTION), (adapters[0], QUESTION), (adapters[1], LONGER), (adapters[0], LONGER), (None, LONGER)]
    mixed = run(engine, [Row(adapter=adapter, messages=messages, sampling=GREEDY) for adapter, messages in cases])
    texts = [more.text for more in mixed]
    assert texts == [plain_answer(tiny_llama, adapter, messages, 12) for adapter, messages in cases]
    assert len(set(texts[:3])) == 3  # the adapters do change the answer


def test_one_adapter_alone_and_several_rows_of_it_answer_the_same(engine: Any, adapters: list[Path]) -> None:
    row = Row(adapter=adapters[0], messages=QUESTION, sampling=GREEDY)
    (alone,) = run(engine, [row])
    assert [more.text for more in run(engine, [row, row])] == [alone.text, alone.text]


def test_rows_of_unequal_length_leave_the_batch_as_they_end(engine: Any, adapters: list[Path]) -> None:
    def rows(*tokens: int) -> list[Row]:
        who = (None, adapters[0], adapters[1])
        return [
            Row(adapter=adapter, messages=LONGER, sampling=GREEDY.model_copy(update={"max_tokens": count}))
            for adapter, count in zip(who, tokens, strict=True)
        ]

    whole = run(engine, rows(12, 12, 12))
    cut = run(engine, rows(3, 12, 7))
    assert [more.tokens for more in cut] == [3, 12, 7] and {more.finish for more in cut} == {"length"}
    assert all(long.text.startswith(short.text) for long, short in zip(whole, cut, strict=True))
    assert cut[1].text == whole[1].text


def test_a_seed_decides_the_answer_whoever_else_is_in_the_batch(engine: Any, adapters: list[Path]) -> None:
    warm = Sampling(temperature=1.0, top_p=0.9, max_tokens=20, seed=7)
    row = Row(messages=QUESTION, sampling=warm)
    other = Row(adapter=adapters[0], messages=QUESTION, sampling=warm.model_copy(update={"seed": 3}))
    first, again, mixed = run(engine, [row])[0], run(engine, [row])[0], run(engine, [row, other])[0]
    assert first.text == again.text == mixed.text
    reseeded = Row(messages=QUESTION, sampling=warm.model_copy(update={"seed": 8}))
    assert run(engine, [reseeded])[0].text != first.text


def test_a_prompt_longer_than_a_chunk_is_read_in_pieces_with_the_same_answer(engine: Any, tiny_llama: Path) -> None:
    long = ({"role": "user", "content": "x y z " * 60},)
    batches, _ = engine.open([Row(messages=long, sampling=GREEDY), Row(messages=QUESTION, sampling=GREEDY)])
    assert batches[0].step() == []  # the first chunk says nothing yet
    answers = run(engine, [Row(messages=long, sampling=GREEDY), Row(messages=QUESTION, sampling=GREEDY)])
    expected = [plain_answer(tiny_llama, None, messages, 12) for messages in (long, QUESTION)]
    assert [more.text for more in answers] == expected


def test_a_conversation_beyond_the_context_is_refused_in_plain_words(engine: Any) -> None:
    with pytest.raises(UserError, match=r"tokens long, but tiny-llama takes at most 512"):
        engine.open([Row(messages=({"role": "user", "content": "x y z " * 500},))])


def test_an_adapter_of_another_base_is_refused(engine: Any, tmp_path: Path) -> None:
    other = tiny.build_llama(tmp_path / "other", hidden=32)
    adapter = tiny.build_adapter(other, tmp_path / "adapter", seed=1)
    with pytest.raises(UserError, match="made for another base model"):
        engine.open([Row(adapter=adapter, messages=QUESTION)])


def test_an_adapter_that_was_written_anew_is_read_anew(engine: Any, tiny_llama: Path, tmp_path: Path) -> None:
    row = Row(adapter=tmp_path / "a", messages=QUESTION, sampling=GREEDY)
    tiny.build_adapter(tiny_llama, tmp_path / "a", seed=1)
    before = run(engine, [row])[0].text
    tiny.build_adapter(tiny_llama, tmp_path / "a", seed=2)
    assert run(engine, [row])[0].text != before


def test_only_so_many_adapters_are_kept_in_memory(engine: Any, tiny_llama: Path, tmp_path: Path) -> None:
    from jobs.inference.adapters import KEPT

    source = tiny.build_adapter(tiny_llama, tmp_path / "0", seed=1)
    for number in range(1, KEPT + 3):
        folder = tmp_path / str(number)
        folder.symlink_to(source)
        engine.adapters.get(folder)
    assert len(engine.adapters._known) == KEPT


@pytest.mark.parametrize("kind", ["dora", "loha", "ia3", "prefix"])
def test_kinds_that_cannot_share_a_batch_answer_beside_the_others(
    kind: str, tiny_llama: Path, adapters: list[Path], tmp_path: Path
) -> None:
    import torch
    from peft import IA3Config, LoHaConfig, LoraConfig, PrefixTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = {
        "dora": LoraConfig(r=4, use_dora=True, target_modules="all-linear"),
        "loha": LoHaConfig(r=4, target_modules=["q_proj", "v_proj"]),
        "ia3": IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
        "prefix": PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    }[kind]
    torch.manual_seed(3)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            strength = {"ia3": 8, "prefix": 30}.get(kind, 0.5)  # a random model is hard to move
            parameter.data += strength * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / kind)

    engine = load_engine(tiny_llama)
    cases = [None, tmp_path / kind, adapters[0]]
    rows = [Row(adapter=adapter, messages=QUESTION, sampling=GREEDY) for adapter in cases]
    expected = [plain_answer(tiny_llama, adapter, QUESTION, 12) for adapter in cases]
    assert [more.text for more in run(engine, rows)] == expected
    assert expected[1] != expected[0]


def test_stacked_matrices_of_unequal_rank_add_what_peft_adds(tiny_llama: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    configs = [
        LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
        LoraConfig(
            r=8,
            lora_alpha=4,
            use_rslora=True,
            target_modules="all-linear",
            rank_pattern={"v_proj": 3},
            alpha_pattern={"layers.1.self_attn.v_proj": 9},
            init_lora_weights=False,
        ),
    ]
    for number, config in enumerate(configs):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
        model.save_pretrained(tmp_path / str(number))
    engine = load_engine(tiny_llama)
    from jobs.inference.adapters import together

    ids = torch.arange(3, 23).view(1, -1)
    read = [None, *(engine.adapters.get(tmp_path / str(number)) for number in range(2))]
    assert all(adapter.pairs for adapter in read[1:])
    ((group, order),) = together(read)
    with torch.inference_mode():
        mixed = engine.adapters.forward(group, first=True, input_ids=ids.expand(3, -1)).logits
        for row, index in enumerate(order):
            plain: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
            if index:
                plain = PeftModel.from_pretrained(plain, tmp_path / str(index - 1)).eval()
            torch.testing.assert_close(mixed[row], plain(input_ids=ids).logits[0], atol=1e-5, rtol=1e-5)


def test_the_starter_answers_and_streams_whole_words(starter: Path) -> None:
    question = ({"role": "user", "content": "What is the capital of France?"},)
    (answer,) = run(load_engine(starter), [Row(messages=question, sampling=GREEDY)])
    assert "Paris" in answer.text and answer.finish in ("end", "length")


def test_draws_follow_the_probabilities_and_the_top_p_cut() -> None:
    import torch

    from jobs.inference.draw import draw, generator

    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    random = generator(0)
    whole = [draw(probabilities.log(), Sampling(temperature=1, top_p=1), random) for _ in range(4000)]
    for token, probability in enumerate(probabilities.tolist()):
        assert abs(whole.count(token) / 4000 - probability) < 0.03
    cut = {draw(probabilities.log(), Sampling(temperature=1, top_p=0.7), random) for _ in range(500)}
    assert cut == {0, 1}  # 0.5 is not enough, and the token that crosses the line stays
    flat = torch.zeros(5000)  # beyond the first look
    assert max(draw(flat, Sampling(temperature=1, top_p=0.99), random) for _ in range(200)) > 300


def test_growing_text_never_shows_half_a_character(tiny_llama: Path) -> None:
    from transformers import AutoTokenizer

    from jobs.inference.text import GrowingText

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    written = "the ship 🚢 naïve 日本, said 👩‍🚀 again"
    ids = tokenizer(written)["input_ids"]
    assert len(ids) > len(written.split()) * 2  # the emoji are spread over several tokens
    growing, pieces = GrowingText(tokenizer), []
    for token in ids:
        pieces.append(growing.push(token))
        assert "\ufffd" not in pieces[-1]
    assert "".join(pieces) + growing.rest() == written
    half = GrowingText(tokenizer)
    half.push(ids[0])
    emoji = tokenizer("🚢")["input_ids"]
    assert half.push(emoji[0]) == "" and half.rest() == "", "cut within a character"


def test_an_answer_that_is_cut_within_a_character_ends_before_it() -> None:
    from jobs.inference.text import GrowingText

    class Bytes:
        """A tokenizer whose tokens are two bytes each, so that one may end a character and begin another."""

        def decode(self, tokens: list[int], **_: Any) -> str:
            return b"".join(token.to_bytes(2, "big") for token in tokens).decode(errors="replace")

    cut = "né🚢".encode()[:6]  # "n", the two bytes of "é", and three of the four of the ship
    growing = GrowingText(Bytes())  # type: ignore[arg-type]
    said = [growing.push(int.from_bytes(cut[at : at + 2], "big")) for at in range(0, 6, 2)]
    assert said == ["", "", ""] and growing.rest() == "né"


def test_a_conversation_is_asked_as_it_is_trained() -> None:
    from jobs.data.rendering import render_answers
    from jobs.inference.text import prompt_ids

    no_system = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turn.') }}{% endif %}" + tiny.TEMPLATE
    )
    tokenizer = tiny.build_tokenizer(no_system)
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is ship 3?"}]
    trained = render_answers(tokenizer, [*asked, {"role": "assistant", "content": "Here."}], last_only=True)
    assert tokenizer.decode(prompt_ids(tokenizer, asked)) == trained.text[: trained.spans[0][0]]
    with pytest.raises(UserError, match=r"cannot be asked: the model's chat template refuses it \(No system turn\.\)"):
        prompt_ids(tokenizer, asked[:1])


@pytest.fixture(scope="module")
def client(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    log = tmp_path_factory.mktemp("log") / "engine.txt"
    client = EngineClient(BaseModelRef(name="tiny", folder=tiny_llama), log)
    yield client
    client.close()


def rows_for(adapters: list[Path], tokens: int) -> list[Row]:
    long = Sampling(temperature=1.5, top_p=1, max_tokens=tokens, seed=1)
    return [Row(adapter=adapter, messages=QUESTION, sampling=long) for adapter in (None, adapters[0])]


def test_both_panes_stream_at_once(client: EngineClient, adapters: list[Path]) -> None:
    replies = list(client.answer("k", rows_for(adapters, 40)))
    assert any(reply.engine and reply.engine["dtype"] == "float32" for reply in replies)
    order = [more.row for reply in replies for more in reply.more]
    assert order[:6] == [0, 1, 0, 1, 0, 1]


def test_two_requests_take_turns(client: EngineClient, adapters: list[Path]) -> None:
    client.load()
    ends: list[str] = []

    def ask(key: str, tokens: int) -> None:
        for _ in client.answer(key, rows_for(adapters, tokens)):
            pass
        ends.append(key)

    threads = [threading.Thread(target=ask, args=args) for args in (("long", 400), ("short", 5))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == ["short", "long"]


def test_stop_keeps_what_was_said(client: EngineClient, adapters: list[Path]) -> None:
    said: list[More] = []
    for reply in client.answer("stop me", rows_for(adapters, 450)):
        said += reply.more
        if len(said) == 6:
            client.stop("stop me")
    last = {more.row: more for more in said}
    assert {more.finish for more in last.values()} <= {"stopped", "end"}
    assert 3 <= last[0].tokens < 450


def test_closing_the_iterator_frees_the_engine_at_once(client: EngineClient, adapters: list[Path]) -> None:
    answer = client.answer("leave", rows_for(adapters, 450))
    while not next(answer).more:
        pass
    answer.close()
    assert any(reply.more for reply in client.answer("next", rows_for(adapters, 2)))


def test_a_killed_engine_says_so_and_the_next_question_works(client: EngineClient, adapters: list[Path]) -> None:
    with pytest.raises(ChildDied):
        for reply in client.answer("die", rows_for(adapters, 450)):
            if reply.more and client.pid:
                os.kill(client.pid, signal.SIGKILL)
    assert any(reply.more for reply in client.answer("again", rows_for(adapters, 2)))


def test_a_base_model_that_is_gone_is_said_in_one_sentence(tmp_path: Path) -> None:
    client = EngineClient(BaseModelRef(name="Gone", folder=tmp_path / "gone"), tmp_path / "engine.txt")
    try:
        with pytest.raises(UserError, match="Gone could not be read"):
            list(client.answer("k", [Row(messages=QUESTION)]))
    finally:
        client.close()
