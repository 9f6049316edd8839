"""Which format and encoding an uploaded file has: told by its content, with the extension as a hint.

Looks at the first bytes only; `EncodingCheck` is then fed the whole file while it is copied.
"""

from __future__ import annotations

import codecs
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePath

from jobs.data.readers import all_readers
from jobs.data.readers.jsons import json_kind
from jobs.errors import UserError

HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Sniffed:
    format: str  # a reader's name
    encoding: str | None  # what `open` takes; None for a binary format


# First bytes of what people upload by mistake, and what to do instead.
_MISTAKES = (
    (b"\xd0\xcf\x11\xe0", "is an old Excel or Word file. Save it as CSV (UTF-8) and upload that"),
    (b"\x1f\x8b", "is compressed (gzip). Unpack it and upload the file inside"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd). Unpack it and upload the file inside"),
    (b"BZh", "is compressed (bzip2). Unpack it and upload the file inside"),
    (b"7z\xbc\xaf", "is an archive (7z). Unpack it and upload the file inside"),
    (b"%PDF", "is a PDF. Save its text as .txt and upload that"),
    (b"ARROW1", "is an Arrow file. Save it as Parquet and upload that"),
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
    encoding = _encoding(filename, head)
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
            names = []
        if any(name.startswith("xl/") for name in names):
            raise UserError(
                f"{filename} is an Excel workbook. In Excel choose Save as, CSV UTF-8, and upload that file."
            )
        if any(name.startswith("word/") for name in names):
            raise UserError(f"{filename} is a Word document. Save it as plain text (.txt, UTF-8) and upload that file.")
        raise UserError(
            f"{filename} is a zip archive. Unpack it and upload the file inside ({supported()} can be read)."
        )
    for magic, remedy in _MISTAKES:
        if head.startswith(magic):
            raise UserError(f"{filename} {remedy} ({supported()} can be read).")


def _encoding(filename: str, head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise UserError(f"{filename} is encoded as UTF-32, which is not read. Save it as UTF-8 and upload it again.")
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = head.count(0)
    if zeros > 0.25 * len(head) and max(head[0::2].count(0), head[1::2].count(0)) > 0.8 * zeros:
        raise UserError(
            f"{filename} looks like UTF-16 without its byte-order mark. Save it as UTF-8 and upload it again."
        )
    control = sum(head.count(byte) for byte in range(32) if byte not in b"\t\n\r\f\x1b")
    if zeros or control > 0.02 * len(head):
        raise UserError(f"{filename} is a binary file, not a dataset. {supported()} can be read.")
    return "utf-8"


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
    if hint:
        return hint
    first = start.splitlines()[0] if start else ""
    if "\t" in first:
        return "tsv"
    return "csv" if "," in first or ";" in first else "text"


class EncodingCheck:
    """Fed a text file's bytes in order; raises UserError at the first that does not fit the encoding."""

    def __init__(self, filename: str, encoding: str) -> None:
        self._filename = filename
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._lines = 1

    def feed(self, chunk: bytes, final: bool = False) -> None:
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            raise UserError(self._problem(error, final)) from None
        self._lines += text.count("\n")

    def _problem(self, error: UnicodeDecodeError, final: bool) -> str:
        if self._encoding == "utf-16":
            return f"{self._filename} is damaged UTF-16 after line {self._lines}. Save it as UTF-8 and upload it again."
        data = bytes(error.object)
        line = self._lines + data[: error.start].count(b"\n")
        if final and "end of data" in error.reason:
            return f"{self._filename} ends in the middle of a character (line {line}). Upload the whole file again."
        start = data.rfind(b"\n", 0, error.start) + 1
        near = data[max(start, error.start - 20) : error.start + 12].split(b"\n")[0]
        high = sum(byte > 127 for byte in data)
        guess = ""
        if high < 0.3 * len(data):  # accents among plain letters; other alphabets are mostly high bytes
            try:
                guess = f"; it looks like Windows-1252, where this reads {near.decode('cp1252')!r}"
            except UnicodeDecodeError:
                guess = "; it looks like an older one-byte encoding"
        return (
            f"{self._filename} is not UTF-8: line {line} has the byte 0x{data[error.start]:02X}{guess}. "
            'Save the file as UTF-8 (in Excel: "CSV UTF-8") and upload it again.'
        )
