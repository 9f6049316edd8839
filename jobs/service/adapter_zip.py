"""An adapter as a download: a zip with one folder at its top that plain `peft` loads on any machine; of the kinds that
PEFT lacks (jobs.modules), what the README in it says loads it.

The files are the run's own, but that they name the base model by its Hub id or its name: the folder on this machine
where the run found it says nothing elsewhere, and tells whose machine it was. The README says what the adapter is.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

_CONFIG, _CARD = "adapter_config.json", "README.md"


def file_name(adapter_name: str, otherwise: str) -> str:
    """The zip's name without its ending, also that of the folder in it: safe on every system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", adapter_name).strip("-.") or otherwise


def chunks(
    folder: Path, name: str, base_model: str, readme: Callable[[str], str] = lambda before: before
) -> Iterator[bytes]:
    """The zip front to back; at most a megabyte of it is held at a time. `base_model`: what its files name. `readme`
    writes its README, from the one in the folder."""
    pipe = _Pipe()
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    found = config.get("base_model_name_or_path")
    with zipfile.ZipFile(pipe, "w") as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            info = zipfile.ZipInfo.from_file(file, f"{name}/{file.relative_to(folder)}")
            # Weights do not shrink; packing them would only cost time.
            info.compress_type = zipfile.ZIP_STORED if file.suffix == ".safetensors" else zipfile.ZIP_DEFLATED
            if file == folder / _CONFIG:
                archive.writestr(info, json.dumps(config | {"base_model_name_or_path": base_model}, indent=2))
            elif file == folder / _CARD and found:
                archive.writestr(info, readme(file.read_text(encoding="utf-8").replace(found, base_model)))
            else:
                with file.open("rb") as source, archive.open(info, "w") as entry:
                    while block := source.read(1 << 20):
                        entry.write(block)
                        yield pipe.take()
            yield pipe.take()
    yield pipe.take()


class _Pipe(io.RawIOBase):
    """Where zipfile writes and we read: it cannot seek, so the zip is made front to back."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._waiting += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._waiting)
        self._waiting.clear()
        return taken
