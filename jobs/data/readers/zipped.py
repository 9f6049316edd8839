"""A zip of files in any of the other formats. Names in the archive are only shown, never used as paths."""

from __future__ import annotations

import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jobs.data.readers.base import Reader, Reading, Row
from jobs.data.readers.parts import Part, part_blocks
from jobs.errors import UserError

MOST_UNPACKED = 10_000_000_000  # bytes: five times the largest upload
MOST_FILES = 10_000
_CHUNK = 1 << 20
_OFFICE = ("xl/", "word/", "ppt/", "META-INF/")  # folders of documents and programs that are zip archives too
_JUNK = ("thumbs.db", "desktop.ini", "icon\r")


class Zip(Reader):
    name = "zip"
    label = "zip"
    order = 90
    extensions = (".zip",)
    is_text = False

    def claims(self, path: Path, head: bytes) -> bool:
        if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:
            return False
        return "mimetype" not in names and not any(name.startswith(_OFFICE) for name in names)

    def blocks(self, path: Path, encoding: str | None, reading: Reading) -> Iterator[list[Row]]:
        try:
            with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(dir=path.parent) as folder:
                parts = _unpack(archive, Path(folder), reading)
                yield from part_blocks(parts, reading)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
            raise _damaged(reading, error) from None
        except OSError as error:
            if error.errno is None:  # bz2 says it so; with a number it is the disk
                raise _damaged(reading, error) from None
            raise


def _unpack(archive: zipfile.ZipFile, folder: Path, reading: Reading) -> list[Part]:
    """The files that are no junk, each under a number. Raises UserError for what must not or cannot be unpacked."""
    members = [info for info in archive.infolist() if not info.is_dir() and not _is_junk(info.filename)]
    name = reading.filename
    if not members:
        raise UserError(f"{name} is an empty zip archive. Upload one with at least one file.")
    if len(members) > MOST_FILES:
        raise UserError(f"{name} holds {len(members):,} files; up to {MOST_FILES:,} are read. Put them in fewer files.")
    if any(info.flag_bits & 1 for info in members):
        raise UserError(f"{name} is locked with a password. Unpack it and upload the file inside.")
    room = min(MOST_UNPACKED, shutil.disk_usage(folder).free // 2)  # the rows need room as well
    promised = sum(info.file_size for info in members)
    if promised > room:
        raise _too_large(name, promised, room)
    parts: list[Part] = []
    unpacked = 0
    for number, info in enumerate(sorted(members, key=lambda info: info.filename)):
        target = folder / str(number)
        with archive.open(info) as source, target.open("wb") as file:
            while chunk := source.read(_CHUNK):  # what an archive says of its sizes need not be true
                unpacked += len(chunk)
                if unpacked > room:
                    raise _too_large(name, unpacked, room)
                file.write(chunk)
        parts.append(Part(target, _shown(info.filename)))
    return parts


def _damaged(reading: Reading, error: Exception) -> UserError:
    return UserError(
        f"{reading.filename} is a zip archive that cannot be unpacked ({str(error)[:200]}). "
        "Make it again and upload that."
    )


def _too_large(name: str, size: int, room: int) -> UserError:
    return UserError(
        f"{name} unpacks to more than {min(size, room) / 1e9:,.1f} GB, which is more than there is room for. "
        "Unpack it and upload only what is to be trained on."
    )


def _is_junk(name: str) -> bool:
    """What operating systems leave in archives: __MACOSX/, .DS_Store, Thumbs.db, hidden files."""
    path = PurePosixPath(name.replace("\\", "/"))
    return "__MACOSX" in path.parts or path.name.startswith(".") or path.name.lower() in _JUNK


def _shown(name: str) -> str:
    """The file's name with its folders, for reading only: without what cannot be printed, and not too long."""
    path = PurePosixPath(name.replace("\\", "/"))
    shown = "/".join(part for part in path.parts if part not in ("/", ".."))
    return "".join(letter for letter in shown if letter.isprintable())[-100:] or "a file"
