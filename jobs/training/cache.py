"""Rows made ready for training, kept beside a dataset's rows.parquet: a later run of the same rows starts from them.

An entry is one file, named by everything that decides what is in it: a changed dataset, mapping, mend, setting,
tokenizer or encoding looks for another name. It is written under a temporary name and renamed, so that two children
write whole files and a killed one none; it ends with sizes and a checksum, and what fails them is made anew. Entries go
with their dataset's folder; of all datasets together they take a bounded size, the longest unused going first. A cache
that cannot be read or written costs a run nothing but time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import struct
import sys
import time
import zlib
from array import array
from collections.abc import Iterator
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import jobs
from jobs.files import whole_file
from jobs.spec import RunSpec
from jobs.tasks.base import Task
from jobs.training.data import LeftOut
from jobs.training.rows import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
FOLDER = "encoded"  # beside rows.parquet
MOST = 2 << 30  # bytes of all entries of all datasets
_OF_FREE = 0.1  # of the disk's free space: a larger entry is not written
_FORGOTTEN = 3_600.0  # seconds after which a half-written file is nobody's
_FOOT = struct.Struct("<8sQQQI")  # magic; bytes of rows, of their ends, of the rows left out; checksum of all three
_MAGIC = b"graftrow"
_BLOCK = 1 << 20

# What turns rows into tokens: a change in any of these files is another encoding.
_CODE = ("data/**/*.py", "tasks/**/*.py", "training/data.py", "training/rows.py", "training/cache.py")
_PACKAGES = ("transformers", "tokenizers", "jinja2")
_OF_TOKENIZER = ("chat_template", "special_tokens_map", "model_max_length", "model_input_names", "split_special_tokens")


class RowCache:
    """The entry of one run's rows, there or not."""

    def __init__(self, path: Path | None) -> None:
        """`path`: None where nothing can be kept."""
        self._path = path

    @classmethod
    def of(cls, spec: RunSpec, task: Task, tokenizer: PreTrainedTokenizerBase) -> RowCache:
        """`tokenizer` as its files say, with the run's chat template: the first call to it may change its settings."""
        try:
            key = _key(spec, task, tokenizer)
        except Exception as error:  # some tokenizers have parts that cannot be written out
            logger.info("The prepared rows are not kept for later runs: %s", error)
            return cls(None)
        return cls(spec.dataset.rows.parent / FOLDER / f"{key}.rows")

    def read(self) -> tuple[Rows, LeftOut] | None:
        """What an earlier run kept; None where there is nothing whole. Rows left out are told again."""
        try:
            file = self._path.open("rb", buffering=0) if self._path else None
        except OSError:
            file = None
        if file is None or self._path is None:
            return None
        found = _checked(file)
        if found is None:
            file.close()
            logger.warning("The cached rows in %s are damaged and are made anew.", self._path)
            self._path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):
            os.utime(self._path)  # the last to be deleted
        ends, listed = found
        left_out = LeftOut()
        for number, reason in listed:
            left_out.add(number, reason)
        return Rows.of_file(file, ends), left_out

    def keep(self, rows: Rows, left_out: LeftOut) -> None:
        """Write them for later runs, where there is room; then delete what has become too much."""
        path = self._path
        if path is None or left_out.count > len(left_out.listed):
            return
        try:
            path.parent.mkdir(exist_ok=True)
            if rows.packed_bytes > min(MOST, _OF_FREE * shutil.disk_usage(path.parent).free):
                return
            with whole_file(path) as file:
                _write(file, rows, left_out)
            _make_room(path.parents[2])
        except OSError as error:
            logger.warning("The prepared rows are not kept for later runs: %s", error)


def _make_room(datasets: Path) -> None:
    """Delete the longest unused entries beyond the limit, and what killed children left half-written. `datasets`: where
    each has its folder."""
    for half_written in datasets.glob(f"*/{FOLDER}/.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - half_written.stat().st_mtime > _FORGOTTEN:
                half_written.unlink()
    entries = []
    for entry in datasets.glob(f"*/{FOLDER}/*.rows"):
        with contextlib.suppress(OSError):  # another child deletes, too
            entries.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry))
    taken = 0
    for _, size, entry in sorted(entries, reverse=True):
        taken += size
        if taken > MOST:
            entry.unlink(missing_ok=True)


def _write(file: BinaryIO, rows: Rows, left_out: LeftOut) -> None:
    out = _Summed(file)
    ends = rows.write(out)
    out.write(ends.tobytes())
    said = json.dumps(left_out.listed).encode()
    out.write(said)
    file.write(_FOOT.pack(_MAGIC, ends[-1], len(ends) * ends.itemsize, len(said), out.checksum))


def _checked(file: BinaryIO) -> tuple[array[int], list[tuple[int, str]]] | None:
    """Where the rows end, and those left out; None where the file is not what was written."""
    try:
        whole = file.seek(0, os.SEEK_END)
        file.seek(max(0, whole - _FOOT.size))
        magic, packed, ended, said, checksum = _FOOT.unpack(file.read())
        if magic != _MAGIC or packed + ended + said + _FOOT.size != whole:
            return None
        file.seek(0)
        found = 0
        for block in _blocks(file, packed):
            found = zlib.crc32(block, found)
        rest = file.read(ended + said)
        if zlib.crc32(rest, found) != checksum:
            return None
        ends = array("q")
        ends.frombytes(rest[:ended])
        return ends, [(number, reason) for number, reason in json.loads(rest[ended:])]
    except (OSError, ValueError, struct.error):
        return None


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        size -= len(block)
        yield block


class _Summed:
    """What is written to a file, with its checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.checksum = 0

    def write(self, block: bytes) -> int:
        self.checksum = zlib.crc32(block, self.checksum)
        return self._file.write(block)


def _key(spec: RunSpec, task: Task, tokenizer: PreTrainedTokenizerBase) -> str:
    """A name for everything that decides which rows come out."""
    dataset, training = spec.dataset, spec.training
    params = task.Params(**spec.task_params).model_dump(mode="json", exclude=set(task.weighing))
    with dataset.rows.open("rb") as file:
        rows = hashlib.file_digest(file, "blake2b").hexdigest()
    decides = {
        "fingerprint": dataset.fingerprint,
        "rows": rows,
        "mapping": dataset.mapping.model_dump(mode="json"),
        "mends": [mend.model_dump(mode="json") for mend in dataset.mends],
        "task": spec.task,
        "params": params,
        "max_length": training.max_length,
        "leave_out_bad_rows": training.leave_out_bad_rows,
        "tokenizer": _of(tokenizer),
        "code": _code(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "byte order": sys.byteorder,
    }
    return hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=16).hexdigest()


def _of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What of a tokenizer decides how texts become tokens, wherever it was loaded from."""
    found = {name: getattr(tokenizer, name, None) for name in _OF_TOKENIZER}
    backend = getattr(tokenizer, "backend_tokenizer", None)  # without one it is refused when it is used
    model = hashlib.blake2b(backend.to_str().encode()).hexdigest() if backend else ""
    dated = "strftime_now" in str(found["chat_template"])  # the template writes today's date
    return {
        "class": type(tokenizer).__name__,
        "model": model,
        "date": date.today().isoformat() if dated else None,
        **{name: str(value) for name, value in found.items()},
    }


@cache
def _code() -> str:
    digest = hashlib.blake2b()
    package = Path(jobs.__file__).parent
    for pattern in _CODE:
        for file in sorted(package.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()
