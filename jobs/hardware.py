"""What this machine has, asked without importing torch (the page asks before Start; the child asks torch itself)."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import psutil

from jobs.frozen import Frozen

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "quota period" in microseconds, or "max period"
_CGROUP = Path("/sys/fs/cgroup")
_CGROUPS = (  # version 2, version 1: limit, use, and what of it a new need would push out
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)
_GPU_KEPT = 2.0  # seconds that an answer of nvidia-smi is good for


class Hardware(Frozen):
    """The device training would run on. Memory in bytes."""

    device: Literal["cuda", "cpu"]
    name: str
    memory_total: int
    memory_free: int
    cores: int
    bf16: bool  # computes bfloat16 in hardware; without it bf16 on a CPU is about 17 times slower than fp32
    fp8: bool = False  # multiplies 8-bit floats with a scale for each row
    compiles: bool = True  # can build Triton's kernels; asked where there is a GPU to build them for

    @property
    def dtype(self) -> str:
        """The precision a run computes in (jobs.training.load.choose_device)."""
        return "bfloat16" if self.bf16 else "float16" if self.device == "cuda" else "float32"


def this_machine() -> Hardware:
    """The first CUDA GPU where nvidia-smi shows one and torch can use it, else the CPU. Free memory is read now."""
    return _nvidia(int(time.monotonic() // _GPU_KEPT)) or processor()


def processor() -> Hardware:
    """The CPU, whatever else there is. Free memory is read now."""
    memory = psutil.virtual_memory()
    limit, used = _container()
    return Hardware(
        device="cpu",
        name=_cpu_name(),
        memory_total=min(memory.total, limit),
        memory_free=max(0, min(memory.available, limit - used)),
        cores=usable_cores(),
        bf16=_cpu_bf16(),
    )


def usable_cores() -> int:
    """Cores this process may use: its affinity, and a container's share of the processor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no container, or no limit ("max")
    return cores


@lru_cache(maxsize=1)
def _nvidia(moment: int) -> Hardware | None:
    """The GPU, asked once a `moment`: the page asks at every change of a setting, and nvidia-smi takes its time."""
    if not shutil.which("nvidia-smi") or _torch_is_for_cpus():
        return None
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not seen or seen.startswith("-"):  # all GPUs are hidden from torch
        return None
    try:
        answer = subprocess.run(
            [
                "nvidia-smi",
                "--query-gpu=name,memory.total,memory.free,compute_cap",
                "--format=csv,noheader,nounits",
                *([] if seen.startswith("MIG-") else [f"--id={seen}"]),  # it does not know parts by name
            ],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
        name, total, free, capability = (part.strip() for part in answer.splitlines()[0].split(","))
        return Hardware(
            device="cuda",
            name=name,
            memory_total=int(total) << 20,
            memory_free=int(free) << 20,
            cores=usable_cores(),
            bf16=float(capability) >= 8.0,
            fp8=float(capability) >= 9.0,
            compiles=can_compile(),
        )
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def can_compile() -> bool:
    """Whether Triton finds what it builds its launcher with, before its first kernel: a C compiler and Python's
    headers (triton/runtime/build.py)."""
    scheme = sysconfig.get_default_scheme()
    include = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(compiler) and Path(include, "Python.h").is_file()


@cache
def _torch_is_for_cpus() -> bool:
    """Whether the installed torch was built without CUDA, read from its version: the page never imports it."""
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return True


def _container() -> tuple[int, int]:
    """A container's memory limit in bytes, and what is in use in it, without files' pages that nobody needs; no limit
    and nothing where none is set."""
    for limit, used, idle in _CGROUPS:
        try:
            most = int((_CGROUP / limit).read_text())
            stat = dict(line.split() for line in (_CGROUP / limit).with_name("memory.stat").read_text().splitlines())
            return most, int((_CGROUP / used).read_text()) - int(stat.get(idle, 0))
        except (OSError, ValueError):
            continue  # no container of this kind, or no limit ("max")
    return sys.maxsize, 0


@cache
def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _cpu_name() -> str:
    for line in _cpu_info().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "CPU"


def _cpu_bf16() -> bool:
    """Whether the processor has instructions for it; GRAFT_CPU_BF16=0 says to compute in 32 bits all the same."""
    if os.environ.get("GRAFT_CPU_BF16") == "0":
        return False
    return any(flag in _cpu_info() for flag in ("avx512_bf16", "amx_bf16"))


def give_freed_memory_back() -> None:
    """To the system, where the C library is asked for it: else it keeps what it may need again."""
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


@contextmanager
def pages_of_files_left_out() -> Iterator[None]:
    """While a model is read its file's pages are resident beside the weights, though the system may take them back at
    any time: on a CPU reading seemed to take twice the memory. What `peak_resident` found before stays, what it finds
    in here is forgotten, where Linux lets it."""
    global _peak_before
    _peak_before = peak_resident()
    try:
        yield
    finally:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew from what is resident now


_peak_before = 0


def peak_resident() -> int:
    """The most memory this process has held so far, in bytes."""
    return max(_peak_before, _highest())


def _highest() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # ru_maxrss would also count the process that we were forked from
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
