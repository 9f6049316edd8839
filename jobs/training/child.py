"""The training child's process: `python -m jobs.training.child RUN_DIRECTORY [ATTEMPT]`, or `--wait`, or
`--together RUN_DIRECTORY ...` for runs of one base that share their steps (jobs.training.together).

With --wait it does its imports first (no torch operation, nothing on a GPU), prints "ready", and waits for one line on
its standard input: {"directory": ..., "attempt": ...}, or {"together": [directories]}; it leaves quietly where the
input ends instead. From then on it
needs nobody: its output goes to the run's log, and its parent may die. Ends where the work begins: jobs.training.run.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from jobs import process
from jobs.rundir import RunFiles


def main(arguments: list[str]) -> int:
    if arguments == ["--wait"]:
        _import_everything()
        print("ready", flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return 0
        order = json.loads(line)
        directories = [Path(each) for each in order.get("together", [order.get("directory")])]
        attempt = int(order.get("attempt", 1))
    elif arguments[1:] and arguments[0] == "--together":
        directories, attempt = [Path(each).resolve() for each in arguments[1:]], 1
    elif arguments and not arguments[0].startswith("-"):
        directories, attempt = [Path(arguments[0]).resolve()], int(arguments[1]) if arguments[1:] else 1
    else:
        print(__doc__, file=sys.stderr)
        return 2
    runs = [RunFiles(directory) for directory in directories]
    _become_independent(runs[0])
    for files in runs:
        _take_over(files)
    for files in runs[1:]:
        files.log.write_text(f"Trained in the process of another run. Its log: {runs[0].log}\n", encoding="utf-8")

    import torch

    from jobs.training.monitor import StopRequest
    from jobs.training.run import Attempt
    from jobs.training.together import run_together

    if not torch.cuda.is_available():  # a GPU must not wait for its host; a processor is the page's, too
        process.give_way()
    stops = [StopRequest(files.stop) for files in runs]

    def on_signal(number: int, frame: object) -> None:
        for stop in stops:
            stop.signalled = True

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if len(runs) == 1:
        results = [Attempt(runs[0], attempt, stops[0]).run()]
    else:
        results = run_together([(files, attempt, stop) for files, stop in zip(runs, stops, strict=True)])
    return 1 if any(result.state == "failed" for result in results) else 0


def _import_everything() -> None:
    """All that a run will import: torch, transformers, peft, the loop."""
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401 - the commonest; others cost a fraction of a second

    import jobs.training.plain
    import jobs.training.run  # noqa: F401


def _become_independent(files: RunFiles) -> None:
    """Output to the log, no input, no signals that a parent's end would send."""
    log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(name, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr, force=True)
    warnings.simplefilter("ignore", FutureWarning)  # said to programmers, and the log is read by others
    for noisy in ("httpx", "urllib3", "filelock", "fsspec", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _take_over(files: RunFiles) -> None:
    """Sign the run directory. Where no starter prepared it for us, an earlier attempt's stop file goes first.

    A starter signs for us before it hands over, and clears up before that: a stop file is then meant for this attempt,
    also where it came while we still imported.
    """
    own = process.identify()
    assert own is not None
    signed = process.read_identity(files.process)
    if signed is None or signed.pid != own.pid:
        files.stop.unlink(missing_ok=True)
    files.result.unlink(missing_ok=True)
    own.write(files.process)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
