"""Base models and adapters: folders, the Hub over a real socket, downloads that plain peft loads."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from jobs.data.columns import Mapping, Shape
from jobs.errors import UserError
from jobs.service.models import Models
from jobs.spec import BaseModelRef, DatasetRef, RunSpec
from storage.db import connect, migrate, write
from storage.files import Home
from storage.tables import Adapter, BaseModel, Dataset, Run
from tests import tiny

MAPPING = Mapping(shape=Shape.PROMPT, columns={"prompt": "question", "completion": "answer"})


@pytest.fixture
def engine(home: Home) -> Iterator[Engine]:
    migrate(home.database)
    engine = connect(home.database)
    yield engine
    engine.dispose()


@pytest.fixture
def models(home: Home, engine: Engine) -> Models:
    return Models(home, engine)


def test_a_local_folder_becomes_a_base_model(models: Models, tiny_llama: Path) -> None:
    view = models.add_folder(tiny_llama)
    assert view.name == "tiny-llama" and view.source == "folder" and view.available
    assert view.shape.architecture == "LlamaForCausalLM" and view.shape.has_chat_template
    assert models.ref(view.id).folder == tiny_llama
    assert models.add_folder(tiny_llama).id == view.id  # the same folder is the same model
    assert [base.id for base in models.bases()] == [view.id]


def test_a_taken_name_gets_a_number(models: Models, tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "tiny-llama")
    models.add_folder(tiny_llama)
    assert models.add_folder(tmp_path / "tiny-llama").name == "tiny-llama (2)"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_without_a_part_says_which(models: Models, tiny_llama: Path, tmp_path: Path, missing: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama, broken)
    (broken / missing).unlink()
    with pytest.raises(UserError, match=missing.removeprefix("model")):
        models.add_folder(broken)
    assert models.bases() == []


def test_a_folder_that_went_away_is_shown_as_such(models: Models, tiny_llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)
    view = models.add_folder(copy)
    shutil.rmtree(copy)
    assert not models.base(view.id).available
    models.remove_base(view.id)
    with pytest.raises(UserError, match="no base model"):
        models.base(view.id)


def test_the_starter_comes_first(models: Models, home: Home, tiny_llama: Path, starter: Path) -> None:
    models.add_folder(tiny_llama)
    (home.models / starter.name).symlink_to(starter)
    assert list(models.prepare_starter()) == []
    assert [base.source for base in models.bases()] == ["starter", "starter", "folder"]


@pytest.fixture
def adapter_id(models: Models, home: Home, engine: Engine, tiny_llama: Path) -> int:
    base = models.add_folder(tiny_llama)
    folder = home.run(1) / "adapter"
    tiny.build_adapter(tiny_llama, folder, seed=1)
    return insert_adapter(engine, home, base.id, folder, "My ../ pirate")


def insert_adapter(engine: Engine, home: Home, base_model_id: int, folder: Path, name: str) -> int:
    """The rows that the worker writes for a completed run."""
    with write(engine) as session:
        dataset = Dataset(
            fingerprint=str(folder), name="d", filename="d.csv", format="csv", size_bytes=1, rows=1, columns=[]
        )
        dataset.mapping, dataset.detection = None, {}
        session.add(dataset)
        session.flush()
        spec = RunSpec(
            name="r",
            base_model=BaseModelRef(name="tiny-llama", folder=Path("/somewhere")),
            dataset=DatasetRef(name="a|b <i>.csv", fingerprint="f", rows=Path("/rows"), mapping=MAPPING),
            task="chat",
            method="lora",
            method_params={"r": 4},
        )
        run = Run(
            name="r",
            base_model_id=base_model_id,
            dataset_id=dataset.id,
            spec=spec.model_dump(mode="json"),
            total_steps=20,
            train_rows=1_350,
            validation_rows=150,
            best_step=1,
            best_eval_loss=0.51234,
        )
        session.add(run)
        session.flush()
        adapter = Adapter(
            name=name,
            run_id=run.id,
            base_model_id=base_model_id,
            method="lora",
            task="chat",
            path=home.relative(folder),
            step=1,
            trainable_parameters=1,
            size_bytes=1,
        )
        session.add(adapter)
        session.flush()
        return adapter.id


def test_a_downloaded_adapter_loads_in_plain_peft(
    models: Models, adapter_id: int, tiny_llama: Path, tmp_path: Path
) -> None:
    name, chunks = models.adapter_zip(adapter_id)
    assert name == "My-..-pirate.zip"
    with zipfile.ZipFile(io.BytesIO(b"".join(chunks))) as archive:
        assert archive.testzip() is None
        assert {Path(entry).parts[0] for entry in archive.namelist()} == {"My-..-pirate"}
        archive.extractall(tmp_path)
        assert str(tiny_llama).encode() not in b"".join(archive.read(entry) for entry in archive.namelist())
    config = json.loads((tmp_path / "My-..-pirate" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-llama"
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tmp_path / "My-..-pirate")
    assert model.peft_config["default"].r == 4


def test_a_downloaded_adapters_readme_says_what_it_is_and_loads_it(
    models: Models, adapter_id: int, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, chunks = models.adapter_zip(adapter_id)
    with zipfile.ZipFile(io.BytesIO(b"".join(chunks))) as archive:
        archive.extractall(tmp_path)
    readme = (tmp_path / "My-..-pirate" / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("---\nbase_model: tiny-llama\n") and "More Information Needed" not in readme
    assert "# My ../ pirate" in readme and "LoRA on tiny-llama, trained with Graft. Task: Chat." in readme
    for line in (
        "| Dataset | a\\|b &lt;i>.csv, 1,350 rows trained on, 150 kept aside |",
        "| Saved at | step 1 of 20 |",
        "| Validation loss | 0.5123 |",
        "| LoRA settings | r 4 |",
    ):
        assert line in readme
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path / "My-..-pirate")
    (tmp_path / "My-..-pirate" / "tiny-llama").symlink_to(tiny_llama)  # the base, by the name that it is called by
    known: dict[str, Any] = {}
    exec(code, known)
    assert known["model"].peft_config["default"].r == 4


@pytest.mark.parametrize(
    ("source", "location", "named"),
    [
        ("starter", "models/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("hub", "owner/name", "owner/name"),
    ],
)
def test_a_downloaded_adapter_names_its_base_by_its_hub_id(
    models: Models, engine: Engine, adapter_id: int, tiny_llama: Path, source: str, location: str, named: str
) -> None:
    folder = models.adapter_path(adapter_id)
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with write(engine) as session:
        base = session.get_one(BaseModel, models.adapter(adapter_id).base_model_id)
        base.source, base.location = source, location
    _, chunks = models.adapter_zip(adapter_id)
    with zipfile.ZipFile(io.BytesIO(b"".join(chunks))) as archive:
        assert json.loads(archive.read("My-..-pirate/adapter_config.json"))["base_model_name_or_path"] == named
        card = archive.read("My-..-pirate/README.md").decode()
        assert f"base_model: {named}\n" in card and str(tiny_llama) not in card
    assert {file: file.read_bytes() for file in folder.iterdir()} == before  # the run's own files are as they were


def test_an_adapter_is_renamed_listed_and_deleted_with_its_folder(models: Models, adapter_id: int) -> None:
    path = models.adapter_path(adapter_id)
    assert models.rename_adapter(adapter_id, " Pirate ").name == "Pirate"
    view = models.adapters()[0]
    assert models.adapters(view.base_model_id) == [view] and models.adapters(view.base_model_id + 1) == []
    with pytest.raises(UserError, match="still used by 1 adapter and 1 run"):
        models.remove_base(view.base_model_id)
    models.delete_adapter(adapter_id)
    assert not path.exists() and models.adapters() == []
    with pytest.raises(UserError, match="no adapter number"):
        models.adapter(adapter_id)


def test_an_adapter_whose_files_are_gone_says_so(models: Models, adapter_id: int) -> None:
    shutil.rmtree(models.adapter_path(adapter_id))
    with pytest.raises(UserError, match="are gone"):
        models.adapter_path(adapter_id)


def test_without_a_network_a_hub_id_is_one_sentence_and_names_what_is_local(models: Models, tiny_llama: Path) -> None:
    models.add_folder(tiny_llama)
    with pytest.raises(UserError, match=r"does not answer.*tiny-llama is on this machine") as caught:
        models.add_hub("owner/name")
    assert len(caught.value.problems) == 1
    with pytest.raises(UserError, match="no Hub id"):
        models.add_hub(" ")


class FakeHub(BaseHTTPRequestHandler):
    """The few answers of the Hub that a look-up needs, from a folder, over a real socket."""

    folder: Path
    commit = "0123456789abcdef0123456789abcdef01234567"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/tiny"):
            files = [{"rfilename": file.name} for file in self.folder.iterdir()]
            self._send(json.dumps({"id": "owner/tiny", "sha": self.commit, "siblings": files}).encode())
        elif path.startswith("/owner/tiny/resolve/") and (file := self.folder / path.rsplit("/", 1)[1]).is_file():
            self._send(file.read_bytes(), etag=f'"{file.name}"')
        elif "gated" in path:
            self._send(b"{}", status=403, code="GatedRepo")
        elif "missing" in path:
            self._send(b"{}", status=404, code="RepoNotFound")
        else:
            self._send(b"{}", status=404, code="EntryNotFound")

    def _send(self, body: bytes, status: int = 200, code: str | None = None, etag: str = '"x"') -> None:
        total = len(body)
        if status == 200 and (asked := self.headers.get("Range")):
            start, _, end = asked.removeprefix("bytes=").partition("-")
            body, status = body[int(start) : int(end) + 1 if end else None], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", etag)
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("X-Linked-Size", str(total))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


LOOK_UP = """
import sys
from jobs.errors import UserError
from jobs.hub import look_up
for hub_id in sys.argv[1:]:
    try:
        found = look_up(hub_id, "Local is here.")
        print(found.revision, found.shape.parameters, found.shape.has_chat_template)
    except UserError as error:
        print(error)
"""


def test_a_hub_model_is_read_from_its_headers(tiny_llama: Path, tmp_path: Path) -> None:
    handler = type("Handler", (FakeHub,), {"folder": tiny_llama})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
    }
    try:
        answers = subprocess.run(
            [sys.executable, "-c", LOOK_UP, "owner/tiny", "owner/gated", "owner/missing", "a b/c"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout.splitlines()
    finally:
        server.shutdown()
    from jobs.shape import read_shape

    assert answers[0] == f"{FakeHub.commit} {read_shape(tiny_llama).parameters} True"
    assert "accepted its terms" in answers[1] and answers[1].endswith("Local is here.")
    assert "has no model 'owner/missing'" in answers[2]
    assert "not a Hub id" in answers[3]
    assert not list(tmp_path.rglob("*.safetensors"))  # headers only


def test_two_adapters_of_one_name_are_told_apart_by_their_runs(
    models: Models, home: Home, engine: Engine, adapter_id: int, tiny_llama: Path
) -> None:
    assert models.adapter(adapter_id).title == "My ../ pirate"
    first = models.adapter(adapter_id)
    folder = home.run(2) / "adapter"
    tiny.build_adapter(tiny_llama, folder, seed=2)
    twin = models.adapter(insert_adapter(engine, home, first.base_model_id, folder, first.name))
    assert [each.title for each in models.adapters()] == [
        f"My ../ pirate · run {twin.run_id}",
        f"My ../ pirate · run {first.run_id}",
    ]
    assert {each.name for each in models.adapters()} == {"My ../ pirate"}
    models.rename_adapter(twin.id, "Parrot")
    assert [each.title for each in models.adapters()] == ["Parrot", "My ../ pirate"]
