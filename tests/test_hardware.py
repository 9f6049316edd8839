"""What the machine has, as its own process may use it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import hardware
from jobs.hardware import processor, usable_cores

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("limit", "share"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("nonsense", None)]
)
def test_a_container_gets_its_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, share: int | None
) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(hardware, "_CPU_QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == (share or len(os.sched_getaffinity(0)))
    assert processor().cores == usable_cores()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's way to begin a peak anew")
def test_pages_of_a_file_that_was_read_are_no_peak(tmp_path: Path) -> None:
    script = """
import mmap, sys
from jobs.hardware import pages_of_files_left_out, peak_resident
held = bytearray(32 << 20)
del held
before = peak_resident()
with pages_of_files_left_out(), open(sys.argv[1], "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    kept = bytearray(pages)
    inside = peak_resident()
    pages.close()
print(inside - before, peak_resident() - before)
"""
    (tmp_path / "weights").write_bytes(bytes(64 << 20))
    given = [sys.executable, "-c", script, str(tmp_path / "weights")]
    done = subprocess.run(given, capture_output=True, text=True, check=True, cwd=ROOT)
    inside, after = map(int, done.stdout.split())
    assert inside > 88 << 20, "the pages and what was copied from them, beside what the peak knew"
    assert 0 <= after < 48 << 20, "what was copied; and what was known before stays"


def test_the_peak_stays_when_memory_is_given_back() -> None:
    script = """
from jobs.hardware import peak_resident
before = peak_resident()
held = bytearray(64 << 20)
after = peak_resident()
del held
print(after - before, peak_resident() - after)
"""
    # A process of its own: this one's peak may be far above what it holds now.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    grown, given_back = map(int, done.stdout.split())
    assert grown > 48 << 20
    assert given_back > -(1 << 20)  # the kernel counts in batches of pages


@pytest.mark.parametrize(("torch", "device"), [("2.13.0", "cuda"), ("2.13.0+cpu", "cpu")])
def test_a_gpu_counts_where_the_installed_torch_can_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str, device: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Some GPU, 24576, 20000, 8.6'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("importlib.metadata.version", lambda name: torch)
    for cached in (hardware._nvidia, hardware._torch_is_for_cpus):
        cached.cache_clear()
    machine = hardware.this_machine()
    assert machine.device == device
    if device == "cuda":
        assert (machine.name, machine.memory_free, machine.bf16) == ("Some GPU", 20000 << 20, True)
    for cached in (hardware._nvidia, hardware._torch_is_for_cpus):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, "GPU 0"),
        ("1", "GPU 1"),
        ("1,0", "GPU 1"),
        ("GPU-1f", "GPU GPU-1f"),
        ("MIG-2", "GPU "),
        ("", None),
        ("-1", None),
    ],
)
def test_the_gpu_is_the_one_that_torch_may_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, found: str | None
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\nfor given in "$@"; do case "$given" in --id=*) id="${given#--id=}";; esac; done\n'
        'echo "GPU $id, 24576, 20000, 8.6"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(hardware, "_torch_is_for_cpus", lambda: False)
    hardware._nvidia.cache_clear()
    machine = hardware._nvidia(0)
    assert (machine.name if machine else None) == (found.strip() if found else None)
    hardware._nvidia.cache_clear()


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "8000", "memory.current": "5000", "memory.stat": "anon 3000\ninactive_file 1000\n"},
        {
            "memory/memory.limit_in_bytes": "8000",
            "memory/memory.usage_in_bytes": "5000",
            "memory/memory.stat": "rss 3000\ntotal_inactive_file 1000\n",
        },
    ],
    ids=("v2", "v1"),
)
def test_what_a_container_uses_already_is_not_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]
) -> None:
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(hardware, "_CGROUP", tmp_path)
    assert (processor().memory_total, processor().memory_free) == (8000, 4000)
    for name in files:
        if name.endswith(("max", "limit_in_bytes")):
            (tmp_path / name).write_text("max" if name.endswith("max") else str((1 << 63) - 4096))
    assert processor().memory_free > 1 << 20, "no limit"


def test_kernels_are_built_only_where_a_compiler_and_the_headers_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setenv("CC", "cc")
    assert not hardware.can_compile()
    (tmp_path / "Python.h").touch()
    assert hardware.can_compile()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not hardware.can_compile()
