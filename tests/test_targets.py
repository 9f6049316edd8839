"""Which layers a choice in words means: on the files' names and on the loaded model's alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.methods import method
from jobs.methods.targets import TargetParams, linears_of, target_problems, targeted
from jobs.shape import LinearModule, ModelShape, read_shape
from tests import tiny
from tests.test_modules import build_family

LEAVES = {
    "llama": {
        "all-linear": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        "attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
        "mlp": {"gate_proj", "up_proj", "down_proj"},
        "query-value": {"q_proj", "v_proj"},
    },
    "gpt2": {"attention": {"c_attn", "c_proj"}, "mlp": {"c_fc", "c_proj"}, "query-value": {"c_attn"}},
    "bert": {"attention": {"query", "key", "value", "dense"}, "mlp": {"dense"}, "query-value": {"query", "value"}},
    "t5": {"attention": {"q", "k", "v", "o"}, "mlp": {"wi", "wo"}, "query-value": {"q", "v"}},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("targets")
    return {family: build_family(family, folder / family) for family in LEAVES}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> ModelShape:
    return read_shape(tiny.build_llama(tmp_path_factory.mktemp("deep") / "deep", layers=6, hidden=16))


def leaves(params: TargetParams, shape: ModelShape) -> set[str]:
    return {module.leaf for module in targeted(params, shape.linears)}


def numbers(params: TargetParams, shape: ModelShape) -> set[int]:
    return {int(module.name.split(".layers.")[1].split(".")[0]) for module in targeted(params, shape.linears)}


@pytest.mark.parametrize("family", LEAVES)
def test_words_mean_the_layers_that_they_say(family: str, folders: dict[str, Path]) -> None:
    shape = read_shape(folders[family])
    for words, expected in LEAVES[family].items():
        assert leaves(TargetParams(targets=words), shape) == expected
    sides = [targeted(TargetParams(targets=words), shape.linears) for words in ("attention", "mlp")]
    assert sum(map(len, sides)) == len(shape.linears)  # every layer is one or the other


@pytest.mark.parametrize("family", LEAVES)
def test_the_files_and_the_loaded_model_agree(family: str, folders: dict[str, Path]) -> None:
    from transformers import AutoModel

    shape, model = read_shape(folders[family]), AutoModel.from_pretrained(folders[family])
    for params in (TargetParams(), TargetParams(targets="mlp", depth="last", depth_layers=1)):
        stored, loaded = targeted(params, shape.linears), targeted(params, linears_of(model))
        assert sorted((m.in_features, m.out_features) for m in stored) == sorted(
            (m.in_features, m.out_features) for m in loaded
        )
        assert loaded
        assert not any("embed" in m.name or "head" in m.name or "pooler" in m.name for m in stored + loaded)


def test_first_and_last_layers_are_counted_in_each_stack(deep: ModelShape, folders: dict[str, Path]) -> None:
    assert numbers(TargetParams(depth="first", depth_layers=2), deep) == {0, 1}
    assert numbers(TargetParams(depth="last", depth_layers=2), deep) == {4, 5}
    t5 = targeted(TargetParams(depth="last", depth_layers=1), read_shape(folders["t5"]).linears)
    assert {module.name.split(".layer.")[0] for module in t5} == {"encoder.block.1", "decoder.block.1"}


def test_names_may_be_leaves_or_longer_ends(deep: ModelShape, folders: dict[str, Path]) -> None:
    assert leaves(TargetParams(targets="names", names="q_proj, down_proj"), deep) == {"q_proj", "down_proj"}
    gpt2 = targeted(TargetParams(targets="names", names="mlp.c_proj"), read_shape(folders["gpt2"]).linears)
    assert {module.name.split(".h.")[-1] for module in gpt2} == {"0.mlp.c_proj", "1.mlp.c_proj"}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"targets": "names", "names": "q_porj"}, "Did you mean q_proj?"),
        ({"targets": "names", "names": "nothing_like_it"}, "has no layer of that name. It has: "),
        ({"targets": "names", "names": " , "}, "Layer names is empty"),
        ({"depth": "last", "depth_layers": 7}, "You set How many layers to 7, but LlamaForCausalLM has 6."),
    ],
)
def test_a_choice_that_means_no_layer_is_told(params: dict, said: str, deep: ModelShape) -> None:
    (problem,) = target_problems(TargetParams(**params), deep)
    assert said in problem


def test_the_experts_of_a_mixture_are_no_linear_layers(deep: ModelShape) -> None:
    experts = [
        LinearModule(name="model.layers.0.mlp.experts.0.gate_proj", in_features=8, out_features=8),
        LinearModule(name="model.layers.0.mlp.gate", in_features=8, out_features=4),
        LinearModule(name="model.layers.0.mlp.shared_expert.up_proj", in_features=8, out_features=8),
    ]
    found = targeted(TargetParams(targets="mlp"), [*experts, *(m for m in deep.linears if m.leaf == "q_proj")])
    assert [module.name for module in found] == ["model.layers.0.mlp.shared_expert.up_proj"]


def test_the_table_adds_up_to_what_is_trained(deep: ModelShape) -> None:
    lora = method("lora")
    params = lora.Params(r=2, targets="query-value")
    rows = lora.target_table(params, deep)
    assert [(row.pattern, row.count) for row in rows] == [
        ("model.layers.*.self_attn.q_proj", 6),
        ("model.layers.*.self_attn.v_proj", 6),
    ]
    assert sum(row.count * row.parameters for row in rows) == lora.trainable(params, deep)
