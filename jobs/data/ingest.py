"""Takes an uploaded file into the store: a process of its own, so that a large file costs the server no memory
and no stutter. `python -m jobs.data.ingest` answers one kind of request, "ingest".

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.data.detect import detect
from jobs.data.formats import EncodingCheck, Sniffed, sniff
from jobs.data.readers import Row, read
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
    sure: bool
    seconds: float
    peak_memory: int  # bytes, of the process that read it


def ingest(path: Path, filename: str, datasets: Path, report: Report) -> Ingested:
    """Copy, check, read and store one file. The same content is stored once. Raises UserError."""
    began = time.monotonic()
    sniffed = sniff(path, filename)
    _remove_left_over(datasets)
    folder = Path(tempfile.mkdtemp(prefix=".new-", dir=datasets))
    try:
        original = folder / f"original.{sniffed.format}"
        fingerprint = _copy(path, original, filename, sniffed, report)
        final = datasets / fingerprint
        if (final / SUMMARY).exists():
            return Ingested.model_validate_json((final / SUMMARY).read_text("utf-8"))
        found = _store(original, filename, sniffed, folder, report)
        summary = Ingested(
            fingerprint=fingerprint,
            format=sniffed.format,
            size_bytes=original.stat().st_size,
            seconds=round(time.monotonic() - began, 3),
            peak_memory=peak_resident(),
            **found,
        )
        (folder / SUMMARY).write_text(summary.model_dump_json(), "utf-8")
        folder.chmod(0o755)
        if final.exists():  # left by a removal that was cut short
            shutil.rmtree(final)
        folder.rename(final)
        return summary
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over(datasets: Path) -> None:
    """What processes that were killed have left."""
    for folder in datasets.glob(".new-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _LEFT_OVER_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _copy(source: Path, target: Path, filename: str, sniffed: Sniffed, report: Report) -> str:
    """Copy the file, checking its encoding on the way; its SHA-256."""
    digest = hashlib.sha256()
    check = EncodingCheck(filename, sniffed.encoding) if sniffed.encoding else None
    size = max(1, source.stat().st_size)
    done = 0
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(_CHUNK):
            digest.update(chunk)
            if check:
                check.feed(chunk)
            writing.write(chunk)
            done += len(chunk)
            report(0.1 * done / size, "Copying and checking the file")
    if check:
        check.feed(b"", final=True)
    return digest.hexdigest()


def _store(original: Path, filename: str, sniffed: Sniffed, folder: Path, report: Report) -> dict[str, Any]:
    reading, blocks = read(original, filename, sniffed.format, sniffed.encoding)
    sample = _Sample()
    total = bad = 0
    reasons: list[str] = []
    with RowWriter(folder / ROWS) as writer:
        for rows in blocks:
            writer.add(rows)
            sample.offer(rows)
            for row in rows:
                if row.problem:
                    bad += 1
                    if len(reasons) < 5:
                        reasons.append(f"row {row.number}: {row.problem}")
            total += len(rows)
            report(0.1 + 0.9 * reading.progress(), f"Read {total:,} rows")
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
    detection = detect(sample.rows, columns, sniffed.format)
    notes = [*reading.notes]
    if bad:
        notes.append(f"{bad:,} {'row' if bad == 1 else 'rows'} cannot be read.")
    return {
        "rows": total,
        "bad_rows": bad,
        "columns": tuple(columns),
        "mapping": detection.mapping.model_dump(mode="json") if detection.mapping else None,
        "text": " ".join([detection.text, *notes]),
        "sure": detection.sure,
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
        summary = ingest(
            Path(request.params["path"]), request.params["filename"], Path(request.params["datasets"]), report
        )
        request.send({"summary": json.loads(summary.model_dump_json())})
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
            f"{request.params['filename']} could not be read ({type(error).__name__}). The log has the details."
        )


if __name__ == "__main__":
    # The thread is waited for, so that a cancelled file leaves nothing behind.
    RpcServer().serve(lambda request: threading.Thread(target=_answer, args=(request,)).start())
