"""Datasets: take an upload, say what it is, show any row as the trainer will see it, check the whole file.

Files are read and tokenised by processes of their own (jobs/data/ingest.py, jobs/data/child.py); here is only the
catalog's side of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
import threading
import uuid
from collections.abc import Generator, Iterator
from datetime import datetime
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from jobs.data import store
from jobs.data.columns import ROLES, Mapping, column_paths
from jobs.data.detect import numbers_of, separator_of
from jobs.data.findings import Finding
from jobs.data.ingest import Ingested
from jobs.data.mends import MendPreview, MendRef, fitting
from jobs.data.preflight import BadRow, Preflight, Progress, RowPreview, Segment, cached
from jobs.errors import UserError
from jobs.fields import problems_of
from jobs.files import write_whole
from jobs.frozen import Frozen
from jobs.rpc import RpcClient
from jobs.service.models import Models
from jobs.tasks import task
from storage.db import read, write
from storage.files import Home
from storage.tables import Dataset, Run

__all__ = ["BadRow", "DatasetView", "Datasets", "Finding", "MendRef", "Preflight", "Progress", "RowPreview", "Segment"]

_CELL_CHARS = 200
_SAMPLED_ROWS = 200
_REPORT_VERSION = 6  # raise it when `encode` or the report changes, so that kept reports are made anew
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class DatasetView(Frozen):
    id: int
    name: str
    filename: str
    format: str
    fingerprint: str
    size_bytes: int
    rows: int
    columns: tuple[str, ...]
    mapping: Mapping | None  # None where detection found nothing: the person has to choose
    detected: str  # what was seen, how sure, and how the file was read
    brief: str  # the same in short
    sure: bool  # False: show the mapping form with the guess filled in
    first_row: Literal["header", "data"] | None = None  # of a table: what its first row was read as
    mends: tuple[MendRef, ...] = ()  # in the order in which they are done
    created_at: datetime
    runs: int  # how many runs used it


_RUNS = select(func.count()).where(Run.dataset_id == Dataset.id).correlate(Dataset).scalar_subquery()
_WITH_RUNS = select(Dataset, _RUNS)

Rows = list[dict[str, Any]]  # within the class `list` is its method


class Datasets:
    def __init__(self, home: Home, engine: Engine, models: Models) -> None:
        self._home = home
        self._engine = engine
        self._models = models
        self._tokens = RpcClient("jobs.data.child", home.logs / "tokens.txt")

    def add(self, path: Path, filename: str | None = None) -> Iterator[Progress | DatasetView]:
        """Take a file into the catalog: progress, then the view last. The same content twice is the same dataset.

        A file among the home's uploads is removed afterwards: the dataset keeps a copy of its own.
        Raises UserError for a file that cannot be read, with every problem found.
        """
        filename = _plain_filename(filename or path.name)
        if not path.is_file():
            raise UserError(f"{filename} could not be read: the file is not there. Upload it again.")
        try:
            ingested, _ = yield from self._take_in("ingest", filename, path=str(path.resolve()), filename=filename)
        finally:
            if path.resolve().is_relative_to(self._home.uploads):  # it has been copied, or cannot be used
                path.unlink(missing_ok=True)
        yield self._catalog(ingested, filename)

    def add_text(self, text: str, name: str = "Pasted text") -> Iterator[Progress | DatasetView]:
        """Take pasted text into the catalog, as `add` takes a file: a table, JSON, JSON lines or plain text by its
        look."""
        if not text.strip():
            raise UserError("There is no text to take in. Paste some first.")
        path = self._home.uploads / f"pasted-{uuid.uuid4().hex}"
        try:
            path.write_text(text, encoding="utf-8", errors="replace", newline="")  # half a character may be pasted
            yield from self.add(path, name)
        finally:
            path.unlink(missing_ok=True)

    def add_from_hub(self, hub_id: str, config: str = "", split: str = "") -> Iterator[Progress | DatasetView]:
        """Take a dataset on the Hugging Face Hub into the catalog, as `add` takes a file.

        Without a configuration or split the usual one is taken. Raises UserError, within seconds where the Hub does
        not answer.
        """
        hub_id, config, split = hub_id.strip(), config.strip(), split.strip()
        if not hub_id:
            raise UserError("There is no Hub id to fetch. Type one that reads owner/name, such as tatsu-lab/alpaca.")
        ingested, title = yield from self._take_in("fetch", hub_id, hub_id=hub_id, config=config, split=split)
        yield self._catalog(ingested, title, name=title.rpartition("/")[2])

    def read_again(self, dataset_id: int, first_row: Literal["header", "data"]) -> Iterator[Progress | DatasetView]:
        """Read a table again, its first row as column names or as data: progress, then the view last.

        A dataset that runs have used stays as it is, and the new reading becomes another one beside it.
        """
        view = self.get(dataset_id)
        if view.first_row is None:
            raise UserError(
                f"{view.name} came from the Hub, which keeps its files; Graft does not. Download it and upload it."
                if view.format == "hub"
                else f"{view.name} is no table, so its first row is a row like any other."
            )
        if view.first_row == first_row:
            yield view
            return
        original = self._home.dataset(view.fingerprint) / f"original.{view.format}"
        if not original.is_file():
            raise UserError(f"The file that {view.name} was read from is not kept. Upload it again.")
        ingested, _ = yield from self._take_in(
            "ingest", view.filename, path=str(original), filename=view.filename, header=first_row
        )
        with write(self._engine) as session:
            twin = session.scalar(select(Dataset.id).where(Dataset.fingerprint == ingested.fingerprint))
            row = session.get(Dataset, dataset_id)  # None: deleted in the meantime
            used = session.scalar(select(Run.id).where(Run.dataset_id == dataset_id).limit(1))
            replaced = row is not None and not twin and not used
            if row and replaced:
                row.mends = []
                for name, value in _found(ingested).items():
                    setattr(row, name, value)
        if replaced:
            shutil.rmtree(self._home.dataset(view.fingerprint), ignore_errors=True)
            yield self.get(dataset_id)
        else:
            kind = "data" if first_row == "data" else "names"
            yield self._catalog(ingested, view.filename, name=f"{view.name}, first row as {kind}")

    def _take_in(self, method: str, what: str, **given: Any) -> Generator[Progress, None, tuple[Ingested, str]]:
        """Have a child read it; what it found, and its title."""
        reader = RpcClient("jobs.data.ingest", self._home.logs / "ingest.txt")
        try:
            for said in reader.stream(method, datasets=str(self._home.datasets), **given):
                if "summary" in said:
                    return Ingested.model_validate(said["summary"]), said["title"]
                yield Progress(done=int(1000 * said["share"]), total=1000, text=said["text"])
        finally:
            reader.close()
        raise UserError(f"{what} was not taken in: its reading was cancelled. Start it again.")

    def _catalog(self, ingested: Ingested, filename: str, name: str = "") -> DatasetView:
        name = name or PurePath(filename).stem
        row = Dataset(name=name[:120] or filename, filename=filename, **_found(ingested))
        # Where the same content is in the catalog already, that dataset is the answer.
        with contextlib.suppress(IntegrityError), write(self._engine) as session:
            session.add(row)
        with read(self._engine) as session:
            found = session.scalar(select(Dataset.id).where(Dataset.fingerprint == ingested.fingerprint))
        return self.get(int(found or 0))

    def list(self) -> list[DatasetView]:
        """Newest first."""
        with read(self._engine) as session:
            return [_view(row, runs) for row, runs in session.execute(_WITH_RUNS.order_by(Dataset.id.desc()))]

    def get(self, dataset_id: int) -> DatasetView:
        """Raises UserError where there is none."""
        with read(self._engine) as session:
            found = session.execute(_WITH_RUNS.where(Dataset.id == dataset_id)).one_or_none()
        if found is None:
            raise UserError(f"There is no dataset {dataset_id}. It may have been deleted; choose another.")
        return _view(*found)

    def set_mapping(self, dataset_id: int, mapping: Mapping) -> DatasetView:
        """The person overrules what was detected; how numbers are written is found by looking unless it is said.

        Raises UserError for missing roles or unknown columns.
        """
        view = self.get(dataset_id)
        columns = {role: column for role, column in mapping.columns.items() if column}
        known = self.columns(dataset_id)
        problems = [f'Choose the column for "{role.capitalize()}".' for role in mapping.missing()]
        problems += [
            f'There is no column "{column}" in {view.name}; it has {", ".join(view.columns)}.'
            for column in columns.values()
            if column not in known
        ]
        problems += [
            f'"{role}" is no part of {mapping.shape.value}.' for role in columns if role not in ROLES[mapping.shape]
        ]
        UserError.raise_all(problems)
        chosen = ", ".join(f'{role} is "{column}"' for role, column in columns.items())
        sample = self.sample(dataset_id)
        separator = separator_of(sample, columns["label"]) if "label" in columns else ""
        decimal, unit = numbers_of(sample, columns["score"]) if "score" in columns else ("", "")
        decimal = (mapping.decimal or decimal) if "score" in columns else ""
        how = {".": ", with commas between thousands", ",": ", with a decimal comma"}.get(decimal, "")
        how += f', without the "{unit}" around it' if unit else ""
        fit = {each.name for each in fitting(mapping.shape)}
        with write(self._engine) as session:
            row = session.get_one(Dataset, dataset_id)
            kept = Mapping(shape=mapping.shape, columns=columns, separator=separator, decimal=decimal, unit=unit)
            row.mapping = kept.model_dump(mode="json")
            row.mends = [ref.model_dump(mode="json") for ref in view.mends if ref.name in fit]
            said = f"Chosen by you: {chosen}{how}."
            row.detection = {**row.detection, "text": said, "brief": said, "sure": True}
        return self.get(dataset_id)

    def rename(self, dataset_id: int, name: str) -> DatasetView:
        name = " ".join(name.split())[:120]
        if not name:
            raise UserError("A dataset needs a name. Type at least one character.")
        self.get(dataset_id)
        with write(self._engine) as session:
            session.get_one(Dataset, dataset_id).name = name
        return self.get(dataset_id)

    def check_unused(self, dataset_id: int) -> None:
        """Raises UserError with the names of the runs that use it."""
        view = self.get(dataset_id)
        with read(self._engine) as session:
            _check_unused(session, view)

    def delete(self, dataset_id: int) -> None:
        """Remove rows and file. Raises UserError while a run uses it."""
        view = self.get(dataset_id)
        with write(self._engine) as session:
            _check_unused(session, view)
            session.delete(session.get_one(Dataset, dataset_id))
        shutil.rmtree(self._home.dataset(view.fingerprint), ignore_errors=True)

    def head(self, dataset_id: int, rows: int = 20) -> Rows:
        """The first rows as they were read (values shortened to 200 characters), for a table.

        A row that could not be read says so in its first column.
        """
        view = self.get(dataset_id)
        shown: Rows = []
        for number, values, problem in store.read_rows(self.rows_path(view)):
            if len(shown) >= rows:
                break
            if values is None:
                shown.append({view.columns[0]: f"(row {number} cannot be read: {problem})"})
            else:
                shown.append({column: _cell(values.get(column)) for column in view.columns})
        return shown

    def sample(self, dataset_id: int) -> Rows:
        """The first rows that can be read, as they are, for guesses at what their columns mean."""
        readable = (
            values for _, values, _ in store.read_rows(self.rows_path(self.get(dataset_id))) if values is not None
        )
        return [*itertools.islice(readable, _SAMPLED_ROWS)]

    def columns(self, dataset_id: int) -> tuple[str, ...]:
        """What a role may be given: the columns, and the paths into those that hold objects."""
        return tuple(column_paths(self.sample(dataset_id), self.get(dataset_id).columns))

    def rows_path(self, view: DatasetView) -> Path:
        """Where the rows of a dataset lie: what a run's DatasetRef names."""
        return self._home.dataset(view.fingerprint) / store.ROWS

    def preview(
        self,
        dataset_id: int,
        row: int,
        base_model_id: int,
        task_name: str,
        task_params: dict[str, Any],
        max_length: int,
    ) -> RowPreview:
        """One row through the real tokenizer and the real masking."""
        view = self.get(dataset_id)
        question = self._question(view, base_model_id, task_name, task_params, max_length)
        return RowPreview.model_validate(self._tokens.call("preview", row=row, **question))

    def try_mend(self, dataset_id: int, ref: MendRef) -> Iterator[Progress | MendPreview]:
        """What one mend more would do to all rows: progress, then the answer last."""
        view = self.get(dataset_id)
        assert view.mapping is not None
        for said in self._tokens.stream("mend", mend=ref.model_dump(mode="json"), **self._rows_as_mapped(view)):
            if "mend" in said:
                yield MendPreview.model_validate(said["mend"])
            else:
                yield Progress.model_validate(said["progress"])

    def preflight(
        self,
        dataset_id: int,
        base_model_id: int,
        task_name: str,
        task_params: dict[str, Any],
        max_length: int,
    ) -> Iterator[Progress | Preflight]:
        """Check every row; progress, then the report last. Reports are cached by their arguments."""
        view = self.get(dataset_id)
        question = self._question(view, base_model_id, task_name, task_params, max_length)
        key = hashlib.sha256(json.dumps([_REPORT_VERSION, question], sort_keys=True).encode()).hexdigest()[:32]
        kept = self._home.dataset(view.fingerprint) / f"preflight-{key}.json"
        if report := cached(kept):
            yield report
            return
        for said in self._tokens.stream("preflight", **question):
            if "report" in said:
                report = Preflight.model_validate(said["report"])
            else:
                yield Progress.model_validate(said["progress"])
        if report is None:
            raise UserError("The check was cancelled before it was done. Start it again.")
        with contextlib.suppress(OSError):  # a dataset deleted in the meantime has no place for its report
            write_whole(kept, report.model_dump_json())
        yield report

    def warm(self, base_model_id: int | None = None) -> None:
        """Start the token child now (and load a tokenizer), so that the first preview is quick. Returns at once."""

        def load() -> None:
            with contextlib.suppress(UserError):
                if base_model_id is None:
                    self._tokens.start()
                else:
                    self._tokens.call("warm", **self._tokenizer(base_model_id))

        threading.Thread(target=load, daemon=True).start()

    def close(self) -> None:
        self._tokens.close()

    def _question(
        self, view: DatasetView, base_model_id: int, task_name: str, task_params: dict[str, Any], max_length: int
    ) -> dict[str, Any]:
        """What decides how rows become tokens. Raises UserError for what cannot be asked."""
        if view.mapping is None:
            raise UserError(f"Graft could not tell what the columns of {view.name} mean. Choose them first.")
        chosen = task(task_name)
        try:
            params = chosen.Params(**task_params)
        except ValidationError as error:
            raise UserError(*problems_of(chosen.Params, error)) from None
        if max_length < 1:
            raise UserError(f"You set the maximum length to {max_length}. It has to be at least 1.")
        return {
            **self._rows_as_mapped(view),
            "task": task_name,
            "params": params.model_dump(mode="json"),
            "max_length": max_length,
            **self._tokenizer(base_model_id),
        }

    def _rows_as_mapped(self, view: DatasetView) -> dict[str, Any]:
        assert view.mapping is not None
        return {
            "rows": str(self.rows_path(view)),
            "mapping": view.mapping.model_dump(mode="json"),
            "mends": [ref.model_dump(mode="json") for ref in view.mends],
        }

    def _tokenizer(self, base_model_id: int) -> dict[str, Any]:
        ref = self._models.ref(base_model_id)
        stamp = ""  # a folder's tokenizer may be changed in place
        if ref.folder:
            for name in _TOKENIZER_FILES:
                with contextlib.suppress(OSError):
                    stamp += f"{name}:{(ref.folder / name).stat().st_mtime_ns};"
        return {"model": ref.name, "source": ref.source, "revision": ref.revision, "stamp": stamp}


def _found(ingested: Ingested) -> dict[str, Any]:
    """What a reading found, as the catalog's columns."""
    return {
        "fingerprint": ingested.fingerprint,
        "format": ingested.format,
        "size_bytes": ingested.size_bytes,
        "rows": ingested.rows,
        "columns": list(ingested.columns),
        "mapping": ingested.mapping,
        "detection": {
            "text": ingested.text,
            "brief": ingested.brief,
            "sure": ingested.sure,
            "first_row": ingested.first_row,
        },
    }


def _view(row: Dataset, runs: int) -> DatasetView:
    return DatasetView(
        id=row.id,
        name=row.name,
        filename=row.filename,
        format=row.format,
        fingerprint=row.fingerprint,
        size_bytes=row.size_bytes,
        rows=row.rows,
        columns=tuple(row.columns),
        mapping=Mapping.model_validate(row.mapping) if row.mapping else None,
        detected=row.detection["text"],
        brief=row.detection.get("brief") or row.detection["text"],
        sure=row.detection["sure"],
        first_row=None if row.format == "hub" else row.detection.get("first_row"),  # its files are not kept
        mends=tuple(MendRef.model_validate(ref) for ref in row.mends),
        created_at=row.created_at,
        runs=runs,
    )


def _check_unused(session: Session, view: DatasetView) -> None:
    used = session.scalars(select(Run.name).where(Run.dataset_id == view.id)).all()
    if used:
        runs, those = ("1 run", "that run") if len(used) == 1 else (f"{len(used)} runs", "those runs")
        named = ", ".join(used[:3]) + (" and more" if len(used) > 3 else "")
        raise UserError(f"{view.name} is used by {runs} ({named}). Delete {those} first.")


def _plain_filename(filename: str) -> str:
    """A name to show: without folders, line breaks or control characters, of a length a page can hold."""
    name = PureWindowsPath(PurePath(filename).name).name
    name = "".join(letter for letter in name if letter.isprintable())
    return name[-150:] or "upload"


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _CELL_CHARS else text[: _CELL_CHARS - 1] + "…"
