"""How a run goes about the memory there is: the fastest that fits, kept to what the person forbade or demanded."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from jobs.hardware import Hardware
from jobs.memory.estimate import Estimate, Planner, budget, fits
from jobs.memory.kept import Lengths
from jobs.memory.plan import MemoryPlan
from jobs.methods import method
from jobs.shape import read_shape
from jobs.spec import TrainingParams
from tests import decoders, tiny
from tests.test_fitting import CHECKED, cpu, gpu
from tests.test_memory import llama

SIZES = (3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 80)  # GB
CASES = list(itertools.product(("135m", "1b", "8b"), ("lora", "qlora", "dora", "full")))


def planner(shape: str, name: str, hardware: Hardware, **over: Any) -> Planner:
    chosen = method(name)
    params = {key: over.pop(key) for key in list(over) if key in type(chosen).Params.model_fields}
    training = TrainingParams(**{"batch_size": 16, "max_length": 2_048, **over})
    return Planner(
        llama(shape),
        chosen,
        type(chosen).Params(**params),
        training,
        hardware,
        CHECKED,
        loop="packed" if chosen.packs else "plain",
    )


def planned(shape: str, name: str, hardware: Hardware, **over: Any) -> tuple[MemoryPlan, Estimate]:
    return planner(shape, name, hardware, **over).planned()


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_more_memory_never_makes_a_slower_plan(shape: str, name: str) -> None:
    costs, fitting = [], []
    for size in SIZES:
        each = planner(shape, name, gpu(size))
        plan, needs = each.planned()
        assert needs == each.of(plan)
        fitting.append(needs.total <= budget(gpu(size), TrainingParams()))
        if fitting[-1]:
            costs.append(each.cost(plan))
    assert fitting == sorted(fitting), "what fits in little memory fits in more"
    assert costs == sorted(costs, reverse=True)
    if name != "full":
        assert len(set(costs)) > 1, "memory that was never short would prove nothing"


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_the_plan_is_the_fastest_of_those_that_fit_and_else_the_most_saving(shape: str, name: str) -> None:
    for size in (3, 8, 16, 24, 80):
        each = planner(shape, name, gpu(size))
        plan, needs = each.planned()
        most = budget(gpu(size), TrainingParams())
        fits = [other for other in each.plans if each.of(other).total <= most]
        if fits:
            assert plan in fits and each.cost(plan) == min(map(each.cost, fits))
        else:
            assert needs.total == min(each.of(other).total for other in each.plans) > most


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_what_was_demanded_or_forbidden_is_kept(shape: str, name: str) -> None:
    layers = llama(shape).layers
    for size in (3, 10, 24, 80):
        assert planned(shape, name, gpu(size), recompute="on")[0].recomputed == layers
        never = planned(shape, name, gpu(size), recompute="off")[0]
        assert never.recomputed == 0 and not never.offloaded


def test_what_cannot_recompute_does_not() -> None:
    prefix = method("prefix-tuning")
    training = TrainingParams(batch_size=16, max_length=2_048)
    plan, _ = Planner(llama("8b"), prefix, prefix.Params(), training, gpu(3), CHECKED).planned()  # type: ignore[attr-defined]
    assert plan == MemoryPlan()


def test_a_memory_limit_plans_as_that_much_memory_would() -> None:
    for limit in (10, 16, 24):
        limited = planned("8b", "qlora", gpu(80), memory_limit_gb=limit)
        assert limited == planned("8b", "qlora", gpu(limit))
        assert limited[1].total <= limit * 1e9
    roomy = planned("8b", "qlora", gpu(24))
    assert planned("8b", "qlora", gpu(24), memory_limit_gb=500) == roomy, "a limit adds no memory"
    assert planned("8b", "qlora", gpu(24), memory_limit_gb=0) == roomy


def test_a_base_that_is_rounded_once_it_is_loaded_needs_what_loading_takes() -> None:
    loaded = llama("8b").parameters * 2
    each = planner("8b", "lora", gpu(80), base_weights="fp8", batch_size=1, max_length=256)
    for plan in each.plans:
        assert each.of(plan).total >= loaded
    assert not fits(planned("8b", "lora", gpu(14), base_weights="fp8")[1], gpu(14), TrainingParams())
    large = planned("8b", "lora", gpu(80), base_weights="fp8", batch_size=64, recompute="off")[1]
    assert large.base < loaded < large.total, "later it takes less, and leaves room for the rest"


def test_only_a_gpu_leaves_anything_to_the_host() -> None:
    for name, size in itertools.product(("lora", "qlora"), (3, 6, 10, 24)):
        plan, _ = planned("8b", name, cpu(size))
        assert not plan.offloaded and not plan.embedding_on_host
    short, _ = planned("8b", "qlora", gpu(7))
    assert short.offloaded and short.embedding_on_host
    tied, _ = planned("1b", "qlora", gpu(2))
    assert not tied.embedding_on_host, "it is the output head, too"
    dora, _ = planned("8b", "dora", gpu(7))
    assert not dora.offloaded, "transformers' layers know no such thing"


def test_tighter_plans_need_less_each_time_and_come_to_an_end() -> None:
    each = planner("8b", "qlora", gpu(80))
    plan, needs = each.planned()
    totals = [needs.total]
    while tighter := each.tighter(plan):
        plan = tighter
        totals.append(each.of(plan).total)
    assert totals == sorted(set(totals), reverse=True) and len(totals) > 3
    assert totals[-1] == min(each.of(other).total for other in each.plans)
    assert all(after <= 0.9 * before for before, after in itertools.pairwise(totals[:-1]))


def test_several_adapters_that_train_together_need_more_than_one_and_less_than_as_many_runs() -> None:
    lora = method("lora")
    training = TrainingParams(batch_size=2, max_length=512, validation_percent=0)
    params = lora.Params()  # type: ignore[attr-defined]
    one, three = (
        Planner(llama("1b"), lora, params, training, gpu(80), Lengths.all(512), loop="packed", adapters=count).planned()
        for count in (1, 3)
    )
    assert one[1].total < three[1].total < 3 * one[1].total
    assert three[1].adapter == 3 * one[1].adapter and three[1].base == one[1].base


def test_a_sentence_says_what_is_done() -> None:
    assert MemoryPlan(pack_tokens=100).sentence(4) == ""
    twice = "computed twice instead of being remembered: it learns the same, more slowly."
    assert MemoryPlan(recomputed=1).sentence(4) == f"To save memory, 1 of 4 layers is {twice}"
    assert MemoryPlan(recomputed=3).sentence(4) == f"To save memory, 3 of 4 layers are {twice}"
    whole = MemoryPlan(recomputed=4, offloaded=True, embedding_on_host=True).sentence(4)
    assert whole == (
        "To save memory, all layers are computed twice instead of being remembered, what goes into them waits in the "
        "computer's memory, the table of words (the embeddings) lies in the computer's memory: it learns the same, "
        "more slowly."
    )


SIZES_OF_A_SHAPE = (
    *("parameters", "embedding_parameters", "linear_parameters", "tied", "layers", "hidden_size", "intermediate_size"),
    *("heads", "kv_heads", "head_dim", "vocab_size", "model_type", "family"),
)


@pytest.mark.parametrize("kind", ("llama", "qwen2", "qwen3", "gemma3_text", "phi3", "gpt2", "bert"))
def test_the_child_plans_by_the_same_sizes_as_the_page(kind: str, tmp_path: Path) -> None:
    """It reads them from the loaded model, the page from the files."""
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from jobs.tasks import task
    from jobs.training.load import shape_of_model

    if kind == "bert":
        tiny.build_bert(tmp_path)
        model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        teaches = task("classification")
    elif kind == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=160)).save_pretrained(tmp_path)
        tiny.build_tokenizer().save_pretrained(tmp_path)
        model, teaches = AutoModelForCausalLM.from_pretrained(tmp_path), task("chat")
    else:
        decoders.build(kind).save_pretrained(tmp_path)
        tiny.build_tokenizer().save_pretrained(tmp_path)
        model, teaches = AutoModelForCausalLM.from_pretrained(tmp_path), task("chat")
    page, child = teaches.body(read_shape(tmp_path)), teaches.body(shape_of_model(model))
    for name in SIZES_OF_A_SHAPE:
        assert getattr(page, name) == getattr(child, name), name
    one, other = (
        sorted((each.layer, each.leaf, each.in_features, each.out_features) for each in shape.linears)
        for shape in (page, child)
    )
    assert one == other and one
