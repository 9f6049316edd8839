"""Which format and encoding an uploaded file has: told by its content, with the extension as a hint.

Looks at the first bytes only; the whole file is held against its encoding while it is copied (jobs.data.encodings).
"""

from __future__ import annotations

import codecs
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePath

from jobs.data.encodings import first_encoding
from jobs.data.readers import all_readers
from jobs.data.readers.conll import is_conll
from jobs.data.readers.delimited import table_kind
from jobs.data.readers.dialogue import is_dialogue
from jobs.data.readers.jsons import json_kind
from jobs.errors import UserError

HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Sniffed:
    format: str  # a reader's name
    encoding: str | None  # what `open` takes; None for a binary format


# First bytes of what people upload by mistake, and what to do instead.
_MISTAKES = (
    (b"\xd0\xcf\x11\xe0", "is an old or locked Excel or Word file. Save it as .xlsx or .txt, without a password"),
    (b"\x1f\x8b", "is compressed (gzip). Unpack it and upload the file inside"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd). Unpack it and upload the file inside"),
    (b"BZh", "is compressed (bzip2). Unpack it and upload the file inside"),
    (b"7z\xbc\xaf", "is an archive (7z). Unpack it and upload the file inside"),
    (b"%PDF", "is a PDF. Save its text as .txt and upload that"),
    (b"SQLite format 3", "is an SQLite database. Export its table as CSV and upload that"),
)


def supported() -> str:
    """The formats that are read, for a sentence."""
    *most, last = (reader.label for reader in all_readers().values())
    return f"{', '.join(most)} and {last}"


def sniff(path: Path, filename: str) -> Sniffed:
    """The file's format and encoding. Raises UserError for what cannot be a dataset, naming the remedy."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise UserError(f"{filename} is empty (0 bytes). Upload a file with at least one row.")
    for reader in all_readers().values():
        if not reader.is_text and reader.claims(path, head):
            return Sniffed(reader.name, None)
    _refuse_mistakes(path, filename, head)
    encoding = first_encoding(filename, head, supported())
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    if not text.strip() and len(head) < HEAD_BYTES:
        raise UserError(f"{filename} holds only blank lines. Upload a file with at least one row.")
    return Sniffed(_format(filename, text), encoding)


def _refuse_mistakes(path: Path, filename: str, head: bytes) -> None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile:
            raise UserError(f"{filename} is a damaged zip archive. Make it again and upload that.") from None
        if any(name.startswith("word/") for name in names):
            raise UserError(f"{filename} is a Word document. Save it as plain text (.txt, UTF-8) and upload that file.")
        raise UserError(f"{filename} is an office document or a program, not a dataset. {supported()} can be read.")
    for magic, remedy in _MISTAKES:
        if head.startswith(magic):
            raise UserError(f"{filename} {remedy} ({supported()} can be read).")


def _format(filename: str, text: str) -> str:
    extension = PurePath(filename).suffix.lower()
    hint = next((reader.name for reader in all_readers().values() if extension in reader.extensions), None)
    start = text.lstrip()
    if start[:1] in ("{", "["):
        found = json_kind(start, hint)
        if found:
            return found
    if hint == "json":
        raise UserError(
            f"{filename} is named .json, but it begins with {start[:20]!r} instead of [ or {{. "
            "Upload a list of objects, or name it after what it holds (.csv, .txt)."
        )
    if hint in (None, "text") and is_conll(text):
        return "conll"
    if hint in (None, "text", "markdown") and is_dialogue(text):
        return "dialogue"
    if hint:
        return hint
    return table_kind(text) or "text"
