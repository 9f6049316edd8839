"""Base models and adapters: the starter, local folders, Hub ids; what runs brought forth."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import IO

from sqlalchemy import Engine, exists, func, select
from sqlalchemy.orm import aliased

from jobs import card, hub, starter, starter_encoder
from jobs.errors import UserError
from jobs.frozen import Frozen
from jobs.rpc import child_environment
from jobs.service import adapter_card, adapter_zip
from jobs.shape import ModelShape, read_shape
from jobs.spec import BaseModelRef, RunSpec
from storage.catalog import forget_adapter
from storage.db import read, write
from storage.files import Home
from storage.tables import Adapter, BaseModel, Chat, Run, Sample

_twin = aliased(Adapter)
SHARED = exists().where(_twin.name == Adapter.name, _twin.id != Adapter.id)  # another adapter has the same name
_NO_ADAPTER = "There is no adapter number {}; it may have been deleted."


class BaseModelView(Frozen):
    id: int
    name: str
    source: str  # "starter", "folder" or "hub"
    location: str
    shape: ModelShape
    available: bool  # its folder is there
    created_at: datetime


class AdapterView(Frozen):
    id: int
    name: str
    title: str  # the name; with its run where another adapter has the same
    run_id: int
    base_model_id: int
    base_model: str
    method: str
    task: str
    step: int
    trainable_parameters: int
    size_bytes: int
    created_at: datetime


class Progress(Frozen):
    fraction: float  # 0 to 1
    text: str


class Models:
    def __init__(self, home: Home, engine: Engine) -> None:
        self._home = home
        self._engine = engine

    def prepare_starter(self) -> Iterator[Progress]:
        """Put the starter models into the home once and catalog them; nothing to do (no progress) where they are there.

        The encoder is only copied; the other is converted. Two callers at once: one converts, the other shows how far
        it is. Closing the iterator ends the conversion. Raises UserError with what is missing.
        """
        problems = self._prepare_encoder()
        folder = self._home.models / starter.NAME
        if not folder.is_dir():
            with (self._home.models / ".starter.lock").open("a+b") as lock:
                said = None
                while not _try_lock(lock):
                    if (now := _shared_progress(lock)) != said:
                        yield (said := now)
                    time.sleep(0.2)
                if not folder.is_dir():
                    yield from self._convert(folder, lock)
        self._catalog(starter.NAME, "starter", str(folder.relative_to(self._home.root)), None, folder)
        UserError.raise_all(problems)

    def _prepare_encoder(self) -> tuple[str, ...]:
        """Why there is none; without it everything else still works."""
        folder = self._home.models / starter_encoder.NAME
        if not folder.is_dir():
            with (self._home.models / ".encoder.lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    if not folder.is_dir():
                        starter_encoder.provide(folder)
                except UserError as error:
                    return error.problems
        self._catalog(starter_encoder.NAME, "starter", str(folder.relative_to(self._home.root)), None, folder)
        return ()

    def _convert(self, folder: Path, lock: IO[bytes]) -> Iterator[Progress]:
        for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        log = self._home.logs / "starter.txt"
        error = None
        with log.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "jobs.starter", str(folder)],
                stdout=subprocess.PIPE,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=child_environment(),
                cwd=Path(__file__).parents[2],
                pass_fds=(lock.fileno(),),  # the lock is held for as long as the child lives, whatever becomes of us
            )
        try:
            for line in child.stdout or ():
                said = json.loads(line)
                if error := said.get("error"):
                    break
                _share_progress(lock, line)
                yield Progress.model_validate(said)
        finally:
            if child.poll() is None and not folder.is_dir():
                child.terminate()
            child.wait()
        if error or child.returncode or not folder.is_dir():
            raise UserError(error or f"The starter model could not be prepared; the log {log.name} says why.")

    def bases(self) -> list[BaseModelView]:
        """The starters first, that which writes before that which reads; then by date."""
        with read(self._engine) as session:
            rows = session.scalars(select(BaseModel).order_by(BaseModel.created_at, BaseModel.id)).all()
        return [self._base_view(row) for row in sorted(rows, key=_rank)]

    def base(self, base_model_id: int) -> BaseModelView:
        """Raises UserError where there is none."""
        return self._base_view(self._base_row(base_model_id))

    def ref(self, base_model_id: int) -> BaseModelRef:
        """Where a child finds it, paths absolute."""
        row = self._base_row(base_model_id)
        if row.source == "hub":
            return BaseModelRef(name=row.name, hub_id=row.location, revision=row.revision)
        return BaseModelRef(name=row.name, folder=self._folder(row))

    def add_folder(self, folder: Path, name: str | None = None) -> BaseModelView:
        """A folder in Hugging Face layout. Raises UserError with what is missing."""
        folder = folder.expanduser().resolve()
        return self._catalog((name or "").strip() or folder.name, "folder", str(folder), None, folder)

    def add_hub(self, hub_id: str) -> BaseModelView:
        """A Hub id: reads its config and safetensors headers now, its weights at the first run.

        Raises UserError in one sentence where the Hub does not answer, naming what is local.
        """
        hub_id = hub_id.strip().removeprefix("https://huggingface.co/").strip("/")
        if not hub_id:
            raise UserError("You gave no Hub id; it should read owner/name.")
        found = hub.look_up(hub_id, self._what_is_local())
        return self._insert(found.hub_id, "hub", found.hub_id, found.revision, found.shape)

    def _what_is_local(self) -> str:
        names = [view.name for view in self.bases() if view.source != "hub" and view.available]
        if not names:
            return "The starter models and folders on this machine need no network."
        return f"{_and(names)} {'is' if len(names) == 1 else 'are'} on this machine."

    def remove_base(self, base_model_id: int) -> None:
        """Forget a base model (a folder on disk stays). Raises UserError while adapters, runs or chats need it."""
        row = self._base_row(base_model_id)
        counts = {
            "adapter": select(func.count()).where(Adapter.base_model_id == base_model_id),
            "run": select(func.count()).where(Run.base_model_id == base_model_id),
            "chat": select(func.count()).where(Chat.base_model_id == base_model_id),
            "sample": select(func.count()).where(Sample.base_model_id == base_model_id),
        }
        with write(self._engine) as session:
            numbers = {word: session.scalar(query) or 0 for word, query in counts.items()}
            found = [f"{number} {word}{'s' if number > 1 else ''}" for word, number in numbers.items() if number]
            if found:
                raise UserError(f"{row.name} is still used by {_and(found)}. Delete those first.")
            session.delete(session.get_one(BaseModel, base_model_id))

    def adapters(self, base_model_id: int | None = None) -> list[AdapterView]:
        """Newest first."""
        query = select(Adapter, BaseModel.name, SHARED).join(BaseModel, BaseModel.id == Adapter.base_model_id)
        if base_model_id is not None:
            query = query.where(Adapter.base_model_id == base_model_id)
        with read(self._engine) as session:
            rows = session.execute(query.order_by(Adapter.created_at.desc(), Adapter.id.desc())).all()
        return [_adapter_view(*row) for row in rows]

    def adapter(self, adapter_id: int) -> AdapterView:
        """Raises UserError where there is none."""
        query = select(Adapter, BaseModel.name, SHARED).join(BaseModel, BaseModel.id == Adapter.base_model_id)
        with read(self._engine) as session:
            if row := session.execute(query.where(Adapter.id == adapter_id)).one_or_none():
                return _adapter_view(*row)
        raise UserError(_NO_ADAPTER.format(adapter_id))

    def adapter_path(self, adapter_id: int) -> Path:
        """Its folder. Raises UserError where it is gone."""
        row = self._adapter_row(adapter_id)
        path = self._home.absolute(row.path)
        if not (path / "adapter_config.json").is_file():
            raise UserError(f"The files of the adapter {row.name} are gone from {row.path}. Delete it and train again.")
        return path

    def rename_adapter(self, adapter_id: int, name: str) -> AdapterView:
        name = name.strip()
        if not name:
            raise UserError("An adapter needs a name.")
        self._adapter_row(adapter_id)
        with write(self._engine) as session:
            session.get_one(Adapter, adapter_id).name = name[:200]
        return self.adapter(adapter_id)

    def delete_adapter(self, adapter_id: int) -> None:
        """Its folder and row go; kept samples stay and say that it is gone."""
        path = self._home.absolute(self._adapter_row(adapter_id).path)
        with write(self._engine) as session:
            forget_adapter(session, adapter_id)
        shutil.rmtree(path, ignore_errors=True)

    def adapter_zip(self, adapter_id: int) -> tuple[str, Iterator[bytes]]:
        """A file name and the chunks of a zip that loads after unpacking, without Graft.

        It names the base by its Hub id, also a starter's; a folder's, which no other machine has, by its name.
        """
        view, path = self.adapter(adapter_id), self.adapter_path(adapter_id)
        base = self._base_row(view.base_model_id)
        own = starter_encoder if Path(base.location).name == starter_encoder.NAME else starter
        named = {"starter": own.HUB_ID, "hub": base.location}.get(base.source, base.name)
        name = adapter_zip.file_name(view.name, otherwise=f"adapter-{adapter_id}")
        readme = partial(
            adapter_card.written, name=view.name, base=named, labels=_labels(path), trained=self._trained(view)
        )
        return f"{name}.zip", adapter_zip.chunks(path, name, named, readme)

    def _trained(self, view: AdapterView) -> adapter_card.Trained:
        with read(self._engine) as session:
            run = session.get_one(Run, view.run_id)
            return adapter_card.Trained(
                spec=RunSpec.model_validate(run.spec),
                step=view.step,
                steps=run.total_steps,
                train_rows=run.train_rows,
                validation_rows=run.validation_rows,
                validation_loss=run.best_eval_loss if run.best_step == view.step else None,
            )

    def _base_row(self, base_model_id: int) -> BaseModel:
        with read(self._engine) as session:
            if row := session.get(BaseModel, base_model_id):
                return row
        raise UserError(f"There is no base model number {base_model_id}.")

    def _adapter_row(self, adapter_id: int) -> Adapter:
        with read(self._engine) as session:
            if row := session.get(Adapter, adapter_id):
                return row
        raise UserError(_NO_ADAPTER.format(adapter_id))

    def _folder(self, row: BaseModel) -> Path:
        # Joined, not resolved: a starter's folder may be a link to a conversion that several homes share.
        return self._home.root / row.location if row.source == "starter" else Path(row.location)

    def _base_view(self, row: BaseModel) -> BaseModelView:
        return BaseModelView(
            id=row.id,
            name=row.name,
            source=row.source,
            location=row.location,
            shape=_shape(json.dumps(row.shape)),
            available=row.source == "hub" or (self._folder(row) / "config.json").is_file(),
            created_at=row.created_at,
        )

    def _catalog(self, name: str, source: str, location: str, revision: str | None, folder: Path) -> BaseModelView:
        with read(self._engine) as session:
            known = session.scalar(select(BaseModel).where(BaseModel.location == location, BaseModel.source == source))
        if known and source == "starter":
            return self._base_view(known)
        return self._insert(name, source, location, revision, read_shape(folder))

    def _insert(self, name: str, source: str, location: str, revision: str | None, shape: ModelShape) -> BaseModelView:
        """A new row, or the one of the same place brought up to date. A name that is taken gets a number."""
        with write(self._engine) as session:
            row = session.scalar(select(BaseModel).where(BaseModel.location == location, BaseModel.source == source))
            if row is None:
                taken = set(session.scalars(select(BaseModel.name)))
                free, number = name, 2
                while free in taken:
                    free, number = f"{name} ({number})", number + 1
                row = BaseModel(name=free, source=source, location=location)
                session.add(row)
            row.revision, row.shape = revision, shape.model_dump(mode="json")
            session.flush()
            return self._base_view(row)


def _rank(row: BaseModel) -> int:
    return 2 if row.source != "starter" else int(Path(row.location).name != starter.NAME)


@lru_cache(maxsize=64)
def _shape(text: str) -> ModelShape:
    """Hundreds of layers, checked one by one: once, not at every look at the model."""
    return ModelShape.model_validate_json(text)


def adapter_title(row: Adapter, shared: bool) -> str:
    """What tells an adapter from every other; `shared`: whether another has its name."""
    return f"{row.name} · run {row.run_id}" if shared else row.name


def _adapter_view(row: Adapter, base_model: str, shared: bool) -> AdapterView:
    return AdapterView(
        id=row.id,
        name=row.name,
        title=adapter_title(row, shared),
        run_id=row.run_id,
        base_model_id=row.base_model_id,
        base_model=base_model,
        method=row.method,
        task=row.task,
        step=row.step,
        trainable_parameters=row.trainable_parameters,
        size_bytes=row.size_bytes,
        created_at=row.created_at,
    )


def _and(words: list[str]) -> str:
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]


def _try_lock(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _share_progress(lock: IO[bytes], line: bytes) -> None:
    """Leave the newest progress in the lock file, for whoever waits."""
    lock.truncate(0)
    lock.write(line)
    lock.flush()


def _shared_progress(lock: IO[bytes]) -> Progress:
    with contextlib.suppress(ValueError):
        lock.seek(0)
        return Progress.model_validate_json(lock.read())
    return Progress(fraction=0, text="Another process prepares the starter model")


def _labels(folder: Path) -> tuple[str, ...]:
    """Of the head that the adapter brings, where it brings one."""
    return card.read_card(folder).labels if (folder / card.FILE).is_file() else ()
