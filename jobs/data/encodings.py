"""How a text file is encoded: told by its first bytes, held against all of them, and Windows-1252 where it is plainly
that. Everything else that is not UTF-8 or UTF-16 is refused in words that say where and what to do.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from jobs.errors import UserError

WINDOWS = "cp1252"
_CHUNK = 1 << 18
_HIGH_SHARE = 0.3  # of a text's bytes: accents among plain letters are fewer, other alphabets more
# What Western European texts hold beyond ASCII. Left out are letters that as a rule come from another code page read
# wrongly: ³ and ¹ (Polish), ý, þ and ð (Turkish), š and ž (Czech, or a Macintosh's é).
_WESTERN = frozenset(
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜßàáâãäåæçèéêëìíîïñòóôõöøùúûüÿŒœ€£§©®°·«»¿¡ªº´²µ½™•…–—‘’“”\xa0".encode(WINDOWS)
)
_UTF8_LETTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_WORD_OF_OTHERS = re.compile(rb"[\xc0-\xff]{3,}")  # three accents in a row: another alphabet


class NotUtf8(UserError):
    """A byte that no UTF-8 text holds: where it stands, and the line around it."""

    def __init__(self, filename: str, line: int, byte: int, near: bytes) -> None:
        self.line, self.near = line, near
        super().__init__(
            f"{filename} is not UTF-8: line {line} has the byte 0x{byte:02X}, as older one-byte encodings do. "
            'Save the file as UTF-8 (in Excel: "CSV UTF-8") and upload it again.'
        )


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
            raise self._problem(error, final) from None
        self._lines += text.count("\n")

    def _problem(self, error: UnicodeDecodeError, final: bool) -> UserError:
        if self._encoding == "utf-16":
            return UserError(
                f"{self._filename} is damaged UTF-16 after line {self._lines}. Save it as UTF-8 and upload it again."
            )
        data = bytes(error.object)
        line = self._lines + data[: error.start].count(b"\n")
        if final and "end of data" in error.reason:
            return UserError(
                f"{self._filename} ends in the middle of a character (line {line}). Upload the whole file again."
            )
        start = data.rfind(b"\n", 0, error.start) + 1
        near = data[max(start, error.start - 20) : error.start + 12].split(b"\n")[0]
        return NotUtf8(self._filename, line, data[error.start], near)


def first_encoding(filename: str, head: bytes, readable: str) -> str:
    """By the first bytes of a file: what `open` takes. `readable` names the formats that are read.

    Raises UserError for what is no text.
    """
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
        raise UserError(f"{filename} is a binary file, not a dataset. {readable} can be read.")
    return "utf-8"


def windows_1252(path: Path, found: NotUtf8) -> str | None:
    """Where the file is plainly Windows-1252, a sentence that says so and shows a place; None where it is not.

    Plainly: hardly a letter of it could be UTF-8, nearly all that is not ASCII is what Western European languages
    write, and it does not stand in whole words.
    """
    if not _is_windows_1252(path):
        return None
    return (
        "It is not UTF-8 and is read as Windows-1252, an older encoding: "
        f'line {found.line} then says "{found.near.decode(WINDOWS).strip()}". '
        "If that looks wrong, save the file as UTF-8 and upload it again."
    )


def _is_windows_1252(path: Path) -> bool:
    size = high = western = in_words = in_utf8 = 0
    kept = bytes(range(128))
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            beyond = data.translate(None, kept)  # what is not ASCII
            size += len(data)
            high += len(beyond)
            western += sum(beyond.count(byte) for byte in _WESTERN)
            in_utf8 += sum(map(len, _UTF8_LETTER.findall(data)))
            in_words += sum(map(len, _WORD_OF_OTHERS.findall(data)))
            try:
                beyond.decode(WINDOWS)
            except UnicodeDecodeError:
                return False
    return high < _HIGH_SHARE * size and western >= 0.97 * high and in_words < 0.05 * high and in_utf8 < 0.2 * high


def check_encoding(path: Path, filename: str, encoding: str) -> tuple[str, list[str]]:
    """(the encoding that all of the file's bytes fit, what is to be said of it). Raises UserError."""
    check = EncodingCheck(filename, encoding)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                check.feed(chunk)
        check.feed(b"", final=True)
    except NotUtf8 as found:
        note = windows_1252(path, found)
        if note is None:
            raise
        return WINDOWS, [note]
    return encoding, []
