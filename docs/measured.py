"""What the benchmarks found, as tables: the loops' speed, beside TRL and Unsloth, on a GPU and on a CPU."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loops import WORKS
from benchmarks.memory import summary
from docs.tables import short, table
from jobs.methods import method

Figures = dict[str, Any]
RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def results(name: str) -> dict[str, Any]:
    """Empty where nothing was measured yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def loops() -> list[str]:
    head = ["Shape and work", "Loop", "Tokens a second", "Tokens a step", "ms a step", "GB", "First loss, s", "GPU"]
    rows = []
    for name, found in results("loops-cuda").items():
        shape, work, loop = name.split()
        keys = ("tokens_per_second", "tokens_a_step", "step_ms", "peak_gb", "first_loss_s")
        rows.append([f"{shape} {work}", loop, *(short(found[key]) for key in keys), found["hardware"]])
    return table(head, rows)


def curves() -> list[str]:
    """How far 8-bit floats lead from 16 bits, and what was said of the time left."""
    found = results("loops-cuda")
    said = []
    for name in found:
        rounded, exact = found[name], found.get(name.replace("-fp8", ""), {})
        if "-fp8" in name and len(rounded.get("losses", [])) == len(exact.get("losses", [])) >= 20:
            apart = max(abs(a / b - 1) for a, b in zip(rounded["losses"], exact["losses"], strict=True))
            said += [
                f"- {name.split()[0]}, {10 * len(rounded['losses'])} steps: with the base in 8-bit floats the loss "
                f"stays within {100 * apart:.2f} % of that in 16 bits (every tenth step).",
            ]
    left = [(name, each["time_left"]) for name, each in found.items() if each.get("time_left")]
    if left:
        each = ", ".join(f"{name.rsplit(' ', 1)[0]} {100 * (told / took - 1):+.0f} %" for name, (told, took) in left)
        said += [f"- The time left that was told after 20 steps, against what it took: {each}."]
    return said


@dataclass(frozen=True)
class Compared:
    """One work: what each trainer reached on the same rows of the same model on the same GPU."""

    name: str  # shape and work, as benchmarks.loops calls them
    graft: Figures
    peers: dict[str, Figures]  # by their variants' names in benchmarks.peers

    @property
    def words(self) -> str:
        shape, work = self.name.split()
        training, params = WORKS[work].training, WORKS[work].method_params
        limit = training.get("memory_limit_gb")
        more = ", recompute" if training.get("recompute") else f", told to stay within {limit} GB" if limit else ""
        more += ", base in 8-bit floats" if params.get("base_weights") == "fp8" else ""
        label = method(WORKS[work].method).label.split(" (")[0]
        size = shape.removeprefix("llama").upper()
        return f"Llama {size}, {label}{more}, {short(self.graft['tokens_a_step'])} tokens a step"

    @property
    def ratio(self) -> str:
        best = max(each["tokens_per_second"] for each in self.peers.values())
        return f"{self.graft['tokens_per_second'] / best:.2f} ×"

    def fastest(self, peer: str, recompute: bool | None = None) -> tuple[str, Figures] | None:
        """Of the peer's variants, or those that recompute, or those that do not: its name and figures."""
        found = [
            (name, figures)
            for name, figures in self.peers.items()
            if name.startswith(peer) and recompute in (None, figures["recompute"])
        ]
        return max(found, key=lambda each: each[1]["tokens_per_second"]) if found else None


def compared(graft: dict[str, Figures], peers: dict[str, Figures]) -> Iterator[Compared]:
    """The works that Graft's packed loop did, and a peer the same or `Work.beside` it. Where Graft was told
    to recompute, or to save memory, only peers that recompute are its peers; else all are: one that does so may be
    faster than its own choice without, or need to."""
    for name, ours in graft.items():
        shape, work, loop = name.split()
        training = WORKS[work].training
        recompute = bool(training.get("recompute") or training.get("memory_limit_gb"))
        prefix = f"{shape} {WORKS[work].beside or work} "
        theirs = {
            each.removeprefix(prefix): found
            for each, found in peers.items()
            if each.startswith(prefix)
            and found["hardware"] == ours["hardware"]
            and (found["recompute"] or not recompute)
        }
        if loop == "packed" and theirs:
            yield Compared(f"{shape} {work}", ours, theirs)


def peers_in_short() -> list[str]:
    """README's table: each trainer at its fastest."""
    found = list(compared(results("loops-cuda"), results("peers-cuda")))
    if not found:
        return []
    rows = [
        [each.words, *(_cell(each.fastest(peer)) for peer in ("trl", "unsloth")), _cell(("", each.graft)), each.ratio]
        for each in found
    ]
    return [
        f"Tokens a second and peak memory on one {found[0].graft['hardware']}: the same rows of the same model in each",
        "step, each trainer with the settings that make it fastest.",
        "",
        *table(["Model and work", "TRL", "Unsloth", "Graft", "Graft to the faster one"], rows),
    ]


def peers() -> list[str]:
    found = list(compared(results("loops-cuda"), results("peers-cuda")))
    if not found:
        return []
    head = [
        "Work",
        "TRL",
        "Unsloth, as it comes",
        "Unsloth, no recompute",
        "Graft",
        "Graft to the best",
        "First losses",
    ]
    rows = []
    for each in found:
        trl = each.fastest("trl")
        default, without = each.fastest("unsloth", recompute=True), each.fastest("unsloth", recompute=False)
        ours = ("", each.graft)
        losses = [f"{one[1]['loss'][0]:.3f}" for one in (trl, default or without, ours) if one]
        cells = [_cell(trl, said=True), *map(_cell, (default, without, ours))]
        rows.append([each.words, *cells, each.ratio, ", ".join(losses)])
    return [f"On one {found[0].graft['hardware']}, with {_versions(found)}.", "", *table(head, rows)]


def _versions(found: list[Compared]) -> str:
    told = {}
    for each in found:
        for name, figures in each.peers.items():
            for package in ("torch", "transformers", name.split("-")[0]):
                told[package] = figures["versions"][package]
    return ", ".join(f"{package} {version}" for package, version in sorted(told.items()))


def _cell(found: tuple[str, Figures] | None, said: bool = False) -> str:
    """`said`: with the settings that its name tells."""
    if found is None:
        return "–"
    name, figures = found
    words = [word for word, has in (("Liger", "liger" in name), ("recompute", figures.get("recompute"))) if has]
    cell = f"{short(figures['tokens_per_second'])}, {figures['peak_gb']:.1f} GB"
    return f"{cell} ({', '.join(words)})" if said and words else cell


def cpu() -> list[str]:
    rows = []
    for precision, found in results("cpu").items():
        rounds = found["rounds"]
        speeds = [
            f"{statistics.median(r[loop]['tokens_per_second'] for r in rounds):.0f}"
            for loop in ("packed", "plain", "trl")
        ]
        first = round(statistics.median(r["packed"]["first_loss_s"] for r in rounds), 1)
        rows.append([precision, *speeds, str(found["packed over"]["trl"]), str(first)])
    return table(["Precision", "Packed", "Plain", "TRL", "Packed over TRL", "First loss, s (packed)"], rows)


def page() -> list[str]:
    found = results("page")
    if not found:
        return []
    names = {"summary": "A changed setting, answered", "html": "A page's HTML", "page": "A page opened, drawn"}
    rows = [
        [words, *(f"{found[when][name]['p50']}, {found[when][name]['max']}" for when in ("idle", "training"))]
        for name, words in names.items()
    ]
    return [
        f"On {found['hardware']['cores']} cores. From the click to the first loss on the page: "
        f"{found['first_step_on_the_page_s']} s.",
        "",
        *table(["Median, worst", "Idle", "While it trains"], rows),
    ]


def memory() -> list[str]:
    on_gpu, on_cpu = results("memory-cuda"), results("memory-cpu")
    cores = f"{on_cpu['hardware']['cores']} cores of an {on_cpu['hardware']['name']}"
    return [
        f"- On one {on_gpu['hardware']['name']}: {summary(on_gpu['results'])}.",
        f"- On {cores}, models of 30 and 135 million parameters: {summary(on_cpu['results'])}.",
    ]
