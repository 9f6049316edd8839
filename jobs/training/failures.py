"""Why a run failed, in one sentence for someone who did not write the program. The traceback is in the log."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import UserError
from jobs.sizes import bytes_texts

if TYPE_CHECKING:
    from jobs.spec import BaseModelRef

_SMALLER = "Lower Micro-batch or Maximum length, or set Recompute activations to As needed."


class LossIsNotANumber(UserError):
    def __init__(self, step: int) -> None:
        super().__init__(
            f"The loss became not-a-number at step {step}: the weights grew beyond all bounds. "
            "Lower the learning rate, or raise Warm-up."
        )


def reason(error: BaseException, step: int, directory: Path, base: BaseModelRef | None = None) -> str:
    """One sentence, or the UserError's own."""
    if isinstance(error, UserError):
        return str(error)
    if _out_of_gpu_memory(error):
        return f"Ran out of GPU memory {_when(step)}{_gpu_use()}. {_SMALLER}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error).lower():
        return f"Ran out of memory {_when(step)}. {_SMALLER}"
    if _disk_full(error):
        free = shutil.disk_usage(directory).free / 1e9
        return f"The disk is full {_when(step)} ({free:.1f} GB left). Free some space and resume the run."
    if base and _hub_unreachable(error):
        return (
            f"Could not load {base.name} from the Hugging Face Hub: it did not answer, or has no such model for you. "
            "Choose a base model that is on this machine, or try again with a network."
        )
    if base and base.name and _missing_file(error):
        return f"A file of {base.name} is missing: {_first_line(error)}"
    return f"Stopped by an error {_when(step)}: {type(error).__name__}: {_first_line(error)}"


def _when(step: int) -> str:
    return f"at step {step}" if step else "before the first step"


def _first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no further word")
    return line if len(line) <= 300 else line[:299] + "…"


def _out_of_gpu_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.cuda.OutOfMemoryError) or "CUDA out of memory" in str(error)


def _gpu_use() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    # Our own cache is freed by the time we are asked: the peak says what was in use.
    used = max(total - free, torch.cuda.max_memory_reserved())
    taken, there = bytes_texts(used, total)
    return f": {taken} of {there} in use"


def _disk_full(error: BaseException) -> bool:
    """ENOSPC anywhere in the chain; torch and safetensors report it as text."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(seen) for sign in ("No space left on device", "os error 28", "failed writing file")):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _hub_unreachable(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    text = str(error)
    return isinstance(error, (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)) or (
        isinstance(error, OSError) and ("couldn't connect" in text or "not a valid model identifier" in text)
    )


def _missing_file(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or (
        isinstance(error, OSError) and ("no file named" in str(error) or "does not appear to have" in str(error))
    )
