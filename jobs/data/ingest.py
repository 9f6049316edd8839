"""Takes a file, or a dataset on the Hub, into the store: a process of its own, so that a large one costs the server
no memory and no stutter. `python -m jobs.data.ingest` answers "ingest" (a file) and "fetch" (from the Hub).

The folder is written under a temporary name and renamed when it is whole; `dataset.json` in it says what was found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from jobs.data import hub
from jobs.data.detect import detect
from jobs.data.encodings import WINDOWS, EncodingCheck, NotUtf8, windows_1252
from jobs.data.formats import Sniffed, sniff
from jobs.data.readers import FirstRow, Reading, Row, read
from jobs.data.readers.parts import part_blocks
from jobs.data.store import ROWS, RowWriter
from jobs.errors import UserError
from jobs.frozen import Frozen
from jobs.hardware import peak_resident
from jobs.rpc import Cancelled, Request, RpcServer

SUMMARY = "dataset.json"
_CHUNK = 1 << 18
_LEFT_OVER_SECONDS = 24 * 3600
_FIRST_SAMPLE, _LATER_SAMPLE = 100, 100

Report = Callable[[float, str], None]  # share done, what is being done


class Ingested(Frozen):
    """What a file turned out to hold."""

    fingerprint: str
    format: str
    size_bytes: int
    rows: int
    bad_rows: int
    columns: tuple[str, ...]
    mapping: dict[str, Any] | None
    text: str  # what was detected and how the file was read
    brief: str = ""  # the same in short, for a list
    sure: bool
    first_row: Literal["header", "data"] | None = None  # of a table: what its first row was read as
    seconds: float
    peak_memory: int  # bytes, of the process that read it


def ingest(path: Path, filename: str, datasets: Path, report: Report, header: FirstRow = "auto") -> Ingested:
    """Copy, check, read and store one file. The same content, read in the same way, is stored once.

    `header`: what a table's first row is. Raises UserError.
    """
    began = time.monotonic()
    sniffed = sniff(path, filename)
    with _new_folder(datasets) as folder:
        original = folder / f"original.{sniffed.format}"
        digest, encoding, notes = _copy(path, original, filename, sniffed, report)
        fingerprint = digest if header == "auto" else _fingerprint(digest, header)
        if known := _known(datasets, fingerprint):
            return known
        reading, blocks = read(original, filename, sniffed.format, encoding, header)
        reading.notes += notes
        found = _store(reading, blocks, sniffed.format, folder / ROWS, lambda share: 0.1 + 0.9 * share, report)
        return _keep(folder, datasets, fingerprint, sniffed.format, original.stat().st_size, began, found)


def fetch_from_hub(hub_id: str, config: str, split: str, datasets: Path, report: Report) -> tuple[Ingested, str]:
    """(what was found, its title). The files are not kept, only their rows: the Hub has them. Raises UserError."""
    began = time.monotonic()
    report(0.0, "Asking the Hub")
    data = hub.find(hub_id, config, split)
    fingerprint = _fingerprint(data.hub_id, data.commit, data.config, data.split)
    if known := _known(datasets, fingerprint):
        return known, data.title
    with _new_folder(datasets) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as fetched:
            parts = hub.fetch(data, Path(fetched), lambda share, text: report(0.6 * share, text))
            reading = Reading(data.title)
            blocks = part_blocks(parts, reading)
            found = _store(reading, blocks, "hub", folder / ROWS, lambda share: 0.6 + 0.4 * share, report)
            size = sum(part.path.stat().st_size for part in parts)
        return _keep(folder, datasets, fingerprint, "hub", size, began, found), data.title


def _fingerprint(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _known(datasets: Path, fingerprint: str) -> Ingested | None:
    """What was found in it where it is here and whole."""
    kept = datasets / fingerprint
    try:
        found = Ingested.model_validate_json((kept / SUMMARY).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if (kept / ROWS).is_file() else None


@contextlib.contextmanager
def _new_folder(datasets: Path) -> Iterator[Path]:
    """A folder under a temporary name, gone afterwards unless `_keep` has given it its own."""
    _remove_left_over(datasets)
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=datasets))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(
    folder: Path, datasets: Path, fingerprint: str, file_format: str, size: int, began: float, found: dict[str, Any]
) -> Ingested:
    summary = Ingested(
        fingerprint=fingerprint,
        format=file_format,
        size_bytes=size,
        seconds=round(time.monotonic() - began, 3),
        peak_memory=peak_resident(),
        **found,
    )
    (folder / SUMMARY).write_text(summary.model_dump_json(), "utf-8")
    folder.chmod(0o755)
    final = datasets / fingerprint
    try:
        folder.rename(final)
    except OSError:
        if known := _known(datasets, fingerprint):  # the same, taken in at the same time: it may be read already
            return known
        shutil.rmtree(final, ignore_errors=True)  # left by a removal that was cut short
        folder.rename(final)
    return summary


def _remove_left_over(datasets: Path) -> None:
    """What processes that were killed have left."""
    for folder in datasets.glob(".new-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _LEFT_OVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _copy(
    source: Path, target: Path, filename: str, sniffed: Sniffed, report: Report
) -> tuple[str, str | None, list[str]]:
    """Copy the file, holding it against its encoding on the way: (its SHA-256, its encoding, what is to be said)."""
    digest = hashlib.sha256()
    encoding = sniffed.encoding
    check = EncodingCheck(filename, encoding) if encoding else None
    notes: list[str] = []
    size = max(1, source.stat().st_size)
    done = 0
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(_CHUNK):
            digest.update(chunk)
            if check:
                try:
                    check.feed(chunk)
                except NotUtf8 as found:
                    note = windows_1252(source, found)
                    if note is None:
                        raise
                    check, encoding, notes = None, WINDOWS, [note]
            writing.write(chunk)
            done += len(chunk)
            report(0.1 * done / size, "Copying and checking the file")
    if check:
        check.feed(b"", final=True)
    return digest.hexdigest(), encoding, notes


def _store(
    reading: Reading,
    blocks: Iterator[list[Row]],
    file_format: str,
    target: Path,
    overall: Callable[[float], float],
    report: Report,
) -> dict[str, Any]:
    """Write every row to `target`; what was found. `overall`: what a share of the reading is of all the work."""
    filename = reading.filename
    sample = _Sample()
    total = bad = 0
    reasons: list[str] = []
    with RowWriter(target) as writer:
        for rows in blocks:
            writer.add(rows)
            sample.offer(rows)
            for row in rows:
                if row.problem:
                    bad += 1
                    if len(reasons) < 5:
                        reasons.append(f"row {row.number}: {row.problem}")
            total += len(rows)
            report(overall(reading.progress()), f"Read {total:,} rows")
    if total == 0:
        raise UserError(f"{filename} has no rows. Upload a file with at least one row below the column names.")
    if total == 1 and sample.rows and _is_by_column(sample.rows[0]):
        raise UserError(
            f"{filename} is stored column by column, so it reads as a single row. Write one object a row and upload "
            'that (in pandas: df.to_json(path, orient="records")).'
        )
    if bad == total:
        raise UserError(f"None of the {total:,} rows in {filename} can be read: {'; '.join(reasons)}.")
    columns = list(reading.columns)
    detection = detect(sample.rows, columns, file_format)
    unread = [f"{bad:,} {'row' if bad == 1 else 'rows'} cannot be read."] if bad else []
    return {
        "rows": total,
        "bad_rows": bad,
        "columns": tuple(columns),
        "mapping": detection.mapping.model_dump(mode="json") if detection.mapping else None,
        "text": " ".join([detection.text, *reading.notes, *unread]),
        "brief": " ".join([detection.text, *reading.brief, *unread]),
        "sure": detection.sure,
        "first_row": reading.first_row,
    }


class _Sample:
    """The first rows and a fair sample of the rest, by reservoir sampling with jumps (Li's algorithm L)."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._chosen = random.Random(0)
        self._seen = 0
        self._next = 0  # the place of the next row to take in; what stands before it is passed over
        self._weight = 1.0

    def offer(self, rows: list[Row]) -> None:
        if self._seen + len(rows) <= self._next:
            self._seen += len(rows)
            return
        for row in rows:
            if self._seen >= self._next and row.values is not None:
                self._take(row.values)
            self._seen += 1

    def _take(self, values: dict[str, Any]) -> None:
        if len(self.rows) < _FIRST_SAMPLE + _LATER_SAMPLE:
            self.rows.append(values)
            if len(self.rows) < _FIRST_SAMPLE + _LATER_SAMPLE:
                return
        else:
            self.rows[_FIRST_SAMPLE + self._chosen.randrange(_LATER_SAMPLE)] = values
        self._weight *= math.exp(math.log(1.0 - self._chosen.random()) / _LATER_SAMPLE)
        jump = math.log(1.0 - self._chosen.random()) / math.log1p(-self._weight)
        self._next = self._seen + 1 + math.floor(jump)


def _is_by_column(values: dict[str, Any]) -> bool:
    """What pandas writes unless told otherwise: {"question": {"0": ..., "1": ...}, "answer": {...}}."""
    lengths = {len(value) if isinstance(value, dict | list) else 0 for value in values.values()}
    return len(values) > 1 and len(lengths) == 1 and lengths.pop() > 1


def _answer(request: Request) -> None:
    last = 0.0

    def report(share: float, text: str) -> None:
        nonlocal last
        if request.cancelled:
            raise Cancelled
        if time.monotonic() - last > 0.1:
            last = time.monotonic()
            request.send({"share": share, "text": text})

    try:
        given = request.params
        datasets = Path(given["datasets"])
        if request.method == "fetch":
            summary, title = fetch_from_hub(given["hub_id"], given["config"], given["split"], datasets, report)
        else:
            title = given["filename"]
            summary = ingest(Path(given["path"]), title, datasets, report, given.get("header", "auto"))
        request.send({"summary": json.loads(summary.model_dump_json()), "title": title})
        request.done()
    except Cancelled:
        request.done()
    except UserError as error:
        request.fail(*error.problems)
    except OSError as error:
        traceback.print_exc()
        request.fail(
            f"The file could not be stored: {error.strerror or error}. Free some disk space or check the folder."
        )
    except Exception as error:
        traceback.print_exc()
        request.fail(
            f"{request.params.get('filename') or request.params['hub_id']} could not be read "
            f"({type(error).__name__}). The log has the details."
        )


if __name__ == "__main__":
    # The thread is waited for, so that a cancelled file leaves nothing behind.
    RpcServer().serve(lambda request: threading.Thread(target=_answer, args=(request,)).start())
