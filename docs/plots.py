"""Plots as SVG, written by hand: they follow the reader's light or dark, and need nothing to be drawn."""

from __future__ import annotations

from math import log2
from typing import Any

from jobs.methods import method

WIDTH, HEIGHT, LEFT, TOP, SIDE = 660, 480, 64, 16, 400  # the field is a square
_COLOURS = {"lora": "#2f81f7", "qlora": "#e8730c", "dora": "#1f9d55", "full": "#a855d8"}
_OTHERS = "#8a8f98"
_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #333 } .grid { stroke: #8884; } .line { stroke: #777; fill: none }
.band { fill: #2f81f71f }
@media (prefers-color-scheme: dark) { text { fill: #ddd } .line { stroke: #aaa } .band { fill: #2f81f74d } }
</style>"""


def memory_plot(results: list[dict[str, Any]]) -> list[str]:
    """Predicted against measured peaks, both axes logarithmic in GB; a point a run that benchmarks.memory measured."""
    runs = [run for run in results if run["measured"]]
    every = [run[key] / 1e9 for run in runs for key in ("measured", "predicted")]
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256]
    low = max(tick for tick in ticks if tick <= min(every))
    high = min(tick for tick in ticks if tick > max(every))
    steps = ticks.index(high) - ticks.index(low)

    def along(gigabytes: float) -> float:
        """How far along an axis, in pixels."""
        return SIDE * log2(gigabytes / low) / steps

    def at(measured: float, predicted: float) -> tuple[float, float]:
        return LEFT + along(measured), TOP + SIDE - along(predicted)

    def place(measured: float, predicted: float) -> str:
        return "{:.1f},{:.1f}".format(*at(measured, predicted))

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">', _STYLE]
    lines.append("<title>Predicted against measured peak memory</title>")
    for tick in ticks[ticks.index(low) : ticks.index(high) + 1]:
        x, y = at(tick, tick)
        lines += [
            f'<path class="grid" d="M{x:.1f},{TOP}v{SIDE}M{LEFT},{y:.1f}h{SIDE}"/>',
            f'<text x="{x:.1f}" y="{TOP + SIDE + 20}" text-anchor="middle">{tick:g}</text>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>',
        ]
    band = [place(low, low * 1.1), place(high / 1.1, high), place(high, high), place(high, high * 0.97)]
    band += [place(low / 0.97, low), place(low, low)]
    lines.append(f'<polygon class="band" points="{" ".join(band)}"/>')
    lines.append(f'<path class="line" d="M{place(low, low)}L{place(high, high)}"/>')
    for run in runs:
        lines.append(_mark(*at(run["measured"] / 1e9, run["predicted"] / 1e9), run["method"], run.get("loop", "plain")))
    for number, (name, loop) in enumerate(sorted({(run["method"], run.get("loop", "plain")) for run in runs})):
        y = TOP + 20 + 22 * number
        lines.append(_mark(LEFT + SIDE + 24, y, name, loop))
        lines.append(f'<text x="{LEFT + SIDE + 36}" y="{y + 4}">{method(name).label}, {loop}</text>')
    middle = TOP + SIDE / 2
    return [
        *lines,
        f'<text x="{LEFT + SIDE / 2}" y="{HEIGHT - 14}" text-anchor="middle">measured, GB</text>',
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">predicted, GB</text>',
        "</svg>",
    ]


def _mark(x: float, y: float, name: str, loop: str) -> str:
    colour = _COLOURS.get(name, _OTHERS)
    if loop == "packed":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
    return (
        f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="none" stroke="{colour}" stroke-width="2"/>'
    )
