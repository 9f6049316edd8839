"""A dataset on the Hugging Face Hub as files: which of them make up a configuration and split, and their download.

Only data files are fetched: the Parquet files that the Hub keeps of nearly every dataset, else the repository's own
files in formats that Graft reads. Code in a repository is never run. The Hub's names are shown, never used as paths.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path, PurePosixPath

from jobs.data.hub_errors import in_words
from jobs.data.readers import all_readers
from jobs.data.readers.parts import Part
from jobs.errors import UserError

_TIMEOUT = 8.0  # seconds for one answer of the Hub, where HF_HUB_ETAG_TIMEOUT says nothing else
_CONVERTED = (
    "refs/convert/parquet"  # the branch where the Hub keeps every dataset as Parquet: config/split/0000.parquet
)
MOST_BYTES = 20_000_000_000
MOST_FILES = 2_000
_CHUNK = 1 << 20
_NO_DATA = ("readme.md", "license.md", "license.txt", "dataset_infos.json", "requirements.txt")

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class HubData:
    """What is to be fetched. `commit` fixes it: the same commit, configuration and split are the same rows."""

    hub_id: str
    commit: str
    config: str
    split: str
    files: tuple[tuple[str, int], ...]  # names in the repository, and bytes

    @property
    def title(self) -> str:
        chosen = ", ".join(name for name in (self.config, self.split) if name and name != "default")
        return f"{self.hub_id} ({chosen})" if chosen else self.hub_id


def find(hub_id: str, config: str = "", split: str = "") -> HubData:
    """The files of a dataset. Without a configuration or split the usual one is taken, where there is one.

    Raises UserError within seconds where the Hub does not answer, has no such dataset, or has several to choose from.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    def ask(revision: str | None) -> tuple[str, dict[str, int]]:
        info = api.dataset_info(hub_id, revision=revision, files_metadata=True, timeout=seconds)
        return str(info.sha), {file.rfilename: file.size or 0 for file in info.siblings or ()}

    api = HfApi(library_name="graft")
    seconds = _timeout()
    with in_words(hub_id, seconds):
        try:
            try:
                commit, found = ask(_CONVERTED)
                converted = True
            except RevisionNotFoundError:
                commit, found = ask(None)
                converted = False
        except (JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"What answers in the Hugging Face Hub's place does not speak as the Hub does, so {hub_id} cannot be "
                "fetched. Check the proxy, the log-in page of this network and HF_ENDPOINT."
            ) from error
    if not converted:
        return _own_files(hub_id, commit, found, config, split)
    found = {name: size for name, size in found.items() if name.endswith(".parquet")}
    return _converted(hub_id, commit, found, config, split)


def _converted(hub_id: str, commit: str, found: dict[str, int], config: str, split: str) -> HubData:
    """Out of config/split/0000.parquet; a large split's folder is called partial-split."""
    places = {name: PurePosixPath(name).parts for name in found}
    places = {name: parts for name, parts in places.items() if len(parts) == 3}
    configs = list(dict.fromkeys(parts[0] for parts in places.values()))
    config = _choose(hub_id, "configuration", config, configs, usual="default")
    splits = list(dict.fromkeys(parts[1].removeprefix("partial-") for parts in places.values() if parts[0] == config))
    split = _choose(hub_id, "split", split, splits, usual="train")
    wanted = (split, f"partial-{split}")
    names = sorted(name for name, parts in places.items() if parts[0] == config and parts[1] in wanted)
    return _checked(HubData(hub_id, commit, config, split, tuple((name, found[name]) for name in names)))


def _own_files(hub_id: str, commit: str, found: dict[str, int], config: str, split: str) -> HubData:
    """The repository's own data files; configuration and split are looked for in their names."""
    endings = {ending for reader in all_readers().values() for ending in reader.extensions}
    data = [
        name
        for name in sorted(found)
        if PurePosixPath(name).suffix.lower() in endings
        and PurePosixPath(name).name.lower() not in _NO_DATA
        and not name.startswith(".")
    ]
    if not data:
        if any(name.endswith(".py") for name in found):
            raise UserError(
                f"{hub_id} on the Hub is made by a program, which Graft never runs. "
                "Choose a dataset that holds its data as files, or upload one."
            )
        raise UserError(f"{hub_id} on the Hub holds no file in a format that Graft reads. Choose another dataset.")
    for word, kind in ((config, "configuration"), (split or "train", "split")):
        named = [name for name in data if re.search(rf"(^|[/_.-]){re.escape(word)}([/_.-]|$)", name)] if word else []
        if named:
            data = named
        elif word and (word == config or split):
            raise UserError(
                f"{hub_id} on the Hub has no file for the {kind} {word!r}. It has: {', '.join(data[:10])}. "
                f"Leave the {kind} empty, or correct it."
            )
    return _checked(HubData(hub_id, commit, config, split, tuple((name, found[name]) for name in data)))


def _choose(hub_id: str, kind: str, wanted: str, have: list[str], usual: str) -> str:
    if not have:
        raise UserError(f"{hub_id} on the Hub holds no data. Choose another dataset.")
    if wanted in have:
        return wanted
    listed = ", ".join(sorted(have)[:20]) + (" ..." if len(have) > 20 else "")
    if wanted:
        raise UserError(f"{hub_id} on the Hub has no {kind} {wanted!r}. It has: {listed}.")
    if usual in have or len(have) == 1:
        return usual if usual in have else have[0]
    raise UserError(f"{hub_id} on the Hub has several {kind}s: {listed}. Say which.")


def _checked(data: HubData) -> HubData:
    size = sum(size for _, size in data.files)
    if size > MOST_BYTES or len(data.files) > MOST_FILES:
        raise UserError(
            f"{data.title} is {size / 1e9:,.0f} GB in {len(data.files):,} files; up to {MOST_BYTES / 1e9:,.0f} GB in "
            f"{MOST_FILES:,} are fetched. Choose a smaller configuration or split."
        )
    return data


def fetch(data: HubData, folder: Path, report: Report) -> list[Part]:
    """Download the files into `folder`, each under a number. `report` may raise to end it. Raises UserError."""
    import httpx2
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    total = max(1, sum(size for _, size in data.files))
    if 2 * total > shutil.disk_usage(folder).free:  # the rows need room as well
        raise UserError(
            f"{data.title} is {total / 1e9:,.1f} GB, for which the disk has no room. Free some, or choose another."
        )
    done = 0
    parts: list[Part] = []
    seconds = _timeout()
    with in_words(data.hub_id, seconds), httpx2.Client(follow_redirects=True, timeout=seconds) as client:
        for number, (name, _) in enumerate(data.files):
            target = folder / str(number)
            url = hf_hub_url(data.hub_id, name, repo_type="dataset", revision=data.commit)
            with client.stream("GET", url, headers=build_hf_headers(library_name="graft")) as answer:
                hf_raise_for_status(answer)
                with target.open("wb") as file:
                    for chunk in answer.iter_bytes(_CHUNK):
                        file.write(chunk)
                        done += len(chunk)
                        if done > MOST_BYTES:
                            raise UserError(f"{data.title} is larger than the Hub said. Choose another dataset.")
                        report(
                            min(1.0, done / total), f"Fetching {data.title}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
                        )
            parts.append(Part(target, name))
    return parts


def _timeout() -> float:
    """Seconds that one answer of the Hub may take, by huggingface_hub's own setting where it is set."""
    try:
        return max(1.0, float(os.environ["HF_HUB_ETAG_TIMEOUT"]))
    except (KeyError, ValueError):
        return _TIMEOUT
