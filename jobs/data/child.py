"""The token child: one long-lived process that holds tokenizers, so that the server never imports torch.

`python -m jobs.data.child` answers "preview" (one row) and "preflight" (every row, with progress).
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.data.columns import Mapping
from jobs.data.mends import Mended, MendRef, try_mend
from jobs.data.preflight import Progress, check, preview
from jobs.data.store import count_rows
from jobs.data.templates import notes, with_template
from jobs.errors import UserError
from jobs.rpc import Cancelled, Request, RpcServer
from jobs.tasks import task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEPT = 4  # tokenizers; a large vocabulary takes about 100 MB
_PROGRESS_SECONDS = 0.2


class Tokenizers:
    """The last few tokenizers by where they come from.

    Several threads may use one at once: a fast tokenizer bears that where none sets its padding or truncation.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple[str, str | None, str], PreTrainedTokenizerBase] = OrderedDict()

    def prepare(self) -> None:
        """Seconds of imports, begun before the first request needs them. Two threads at once break transformers'."""
        with self._lock:
            import transformers.models.auto.tokenization_auto  # noqa: F401

    def get(self, name: str, source: str, revision: str | None, stamp: str) -> PreTrainedTokenizerBase:
        """Raises UserError where it cannot be loaded. Remote code is never run."""
        key = (source, revision, stamp)
        with self._lock:
            # Inside the lock: transformers fills its lazy module, and a second thread would find it half filled.
            from transformers import AutoTokenizer

            if key not in self._loaded:
                try:
                    loaded = AutoTokenizer.from_pretrained(source, revision=revision)
                except Exception as error:
                    traceback.print_exc()
                    raise UserError(
                        f"The tokenizer of {name} could not be loaded ({type(error).__name__}). "
                        "Check that the model is complete and, for a Hub id, that the Hub can be reached."
                    ) from None
                self._loaded[key] = loaded
                while len(self._loaded) > _KEPT:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(key)
            return self._loaded[key]


_TOKENIZERS = Tokenizers()


def _answer(request: Request) -> None:
    try:
        _serve(request)
        request.done()
    except Cancelled:
        request.done()
    except UserError as error:
        request.fail(*error.problems)
    except Exception as error:
        traceback.print_exc()
        request.fail(f"The rows could not be checked ({type(error).__name__}: {str(error)[:200]}). See the log.")


def _serve(request: Request) -> None:
    given = request.params
    if request.method == "warm":
        _load(given)
        return
    rows, mapping = Path(given["rows"]), Mapping.model_validate(given["mapping"])
    mends = tuple(MendRef.model_validate(item) for item in given.get("mends", ()))
    progress = _teller(request)
    if request.method == "mend":
        total = count_rows(rows)
        progress(Progress(done=0, total=total, text="Reading the rows"))
        tried = try_mend(
            rows,
            mapping,
            mends,
            MendRef.model_validate(given["mend"]),
            lambda done: progress(Progress(done=done, total=total, text=f"Looked at {done:,} of {total:,} rows")),
        )
        request.send({"mend": tried.model_dump(mode="json")})
        return
    chosen = task(given["task"])
    params = chosen.Params(**given["params"])
    own = _load(given)
    UserError.raise_all(chosen.check_data(params, mapping, bool(own.chat_template)))
    tokenizer = with_template(own, params)
    length = int(given["max_length"])
    if request.method == "preview":
        source = _mended(rows, mapping, mends)
        seen = preview(source, int(given["row"]), mapping, chosen, params, tokenizer, length)
        request.send(seen.model_copy(update={"notes": tuple(notes(own, params))}).model_dump(mode="json"))
        return
    progress(Progress(done=0, total=1, text="Reading the rows"))
    report = check(rows, mapping, chosen, params, tokenizer, length, progress, mends)
    request.send({"report": report.model_dump(mode="json")})


def _teller(request: Request) -> Callable[[Progress], None]:
    """Sends progress now and then; raises Cancelled where nobody waits for the answer any more."""
    told = 0.0

    def progress(now: Progress) -> None:
        nonlocal told
        if request.cancelled:
            raise Cancelled
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            request.send({"progress": now.model_dump()})

    return progress


@lru_cache(maxsize=4)
def _read(rows: Path, mapping: str, mends: str) -> Mended:
    refs = [MendRef.model_validate(item) for item in json.loads(mends)]
    return Mended(rows, Mapping.model_validate_json(mapping), refs)


def _mended(rows: Path, mapping: Mapping, mends: Sequence[MendRef]) -> Mended:
    """The last few datasets with their mends: what a mend has learned of all rows serves every preview."""
    return _read(rows, mapping.model_dump_json(), json.dumps([ref.model_dump(mode="json") for ref in mends]))


def _load(given: dict[str, Any]) -> PreTrainedTokenizerBase:
    return _TOKENIZERS.get(given["model"], given["source"], given["revision"], given["stamp"])


if __name__ == "__main__":
    # Tokenizers need no torch. Without it transformers starts in a third of the time and takes 270 MB less.
    sys.modules["torch"] = None  # type: ignore[assignment]
    threading.Thread(target=_TOKENIZERS.prepare, daemon=True).start()
    RpcServer().serve(lambda request: threading.Thread(target=_answer, args=(request,), daemon=True).start())
