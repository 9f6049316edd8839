"""One run: /run?id=7. Its shell is here; app/static/run.js fills it over one socket, see app/live_routes.py."""

from __future__ import annotations

import json

import gradio as gr

from app.components import STATES
from app.theme import static_url
from jobs.service import Service

SLUG = "run"
TITLE = "Run"
NAV = None
ORDER = 31
ICON = ""

_FIGURES = (
    ("step", "Step"),
    ("time", "Time"),
    ("loss", "Training loss"),
    ("eval", "Validation loss"),
    ("best", "Best so far"),
    ("speed", "Speed"),
    ("memory", "Peak memory"),
)

_SHELL = """
<div data-run="waiting" class="hint" aria-busy="true">Opening the run…</div>
<div data-run="missing" class="card empty" hidden>
  <h2>There is no such run</h2>
  <p data-run="missing-text"></p>
  <div class="buttons">
    <a class="button" href="/runs">All runs</a> <a class="button primary" href="/train">Start a run</a>
  </div>
</div>
<div data-run="body" class="run" hidden>
  <header class="page-header run-header">
    <div class="run-title">
      <h1 data-run="name"></h1>
      <p data-run="subtitle"></p>
      <p class="run-state" aria-live="polite"><span data-run="badge" class="badge"></span>
        <span data-run="words"></span>
        <span data-run="connection" class="badge warn" hidden>Reconnecting…</span></p>
    </div>
    <div class="buttons">
      <a data-run="chat" class="button primary" hidden>Chat with it</a>
      <a data-run="download" class="button" download hidden>Download adapter</a>
      <button data-run="resume" type="button" class="button" hidden>Resume</button>
      <a data-run="again" class="button" hidden>Train again</a>
      <button data-run="stop" type="button" class="button danger" hidden>Stop</button>
      <button data-run="delete" type="button" class="button quiet" hidden>Delete</button>
    </div>
  </header>
  <div data-run="problems"></div>
  <div data-run="reason" class="note" role="status" hidden>
    <p data-run="reason-text"></p>
    <button data-run="reason-log" type="button" class="link" hidden>Show the log</button>
  </div>
  <div data-run="progress" class="progress-track" role="progressbar" aria-label="Steps done" aria-valuemin="0"
    aria-valuemax="100" hidden><div data-run="bar" class="progress-bar"></div></div>
  <dl class="figures run-figures">@figures</dl>
  <div data-run="worse" class="note warn" role="status" hidden><p data-run="worse-text"></p></div>
  <div data-run="over-limit" class="note warn" role="status" hidden><p data-run="over-limit-text"></p></div>
  <p data-run="loop" class="hint" hidden></p>
  <div data-run="charts-large"></div>
  <p data-run="no-curve" class="card hint">The curve begins with the first step.</p>
  <section data-run="answers-card" class="card" hidden>
    <div class="chart-head"><h2>What it answers now</h2>
      <label class="chart-option">At <select data-run="answers-step" aria-label="Checkpoint"></select></label></div>
    <div data-run="answers"></div>
  </section>
  <div data-run="evaluation"></div>
  <div data-run="charts-small" class="charts"></div>
  <section class="card">
    <details><summary>What was trained</summary><div data-run="facts"></div></details>
    <details><summary>Settings</summary><div data-run="settings"></div></details>
    <details data-run="log-box"><summary>Log</summary>
      <pre data-run="log" class="log" tabindex="0" aria-label="Log">Reading the log…</pre></details>
  </section>
</div>
"""


def build(service: Service) -> None:
    figures = "".join(
        f'<div class="figure" data-run="figure-{name}"><dt>{label}</dt><dd>–</dd><p class="hint"></p></div>'
        for name, label in _FIGURES
    )
    gr.HTML(
        _SHELL.replace("@figures", figures),
        js_on_load=f"Graft.run(element, {json.dumps(STATES)})",
        head=(
            f'<link rel="stylesheet" href="{static_url("uPlot.min.css")}">'
            f'<script src="{static_url("uPlot.iife.min.js")}"></script>'
            f'<script src="{static_url("chart.js")}"></script>'
            f'<script src="{static_url("run.js")}"></script>'
        ),
        apply_default_css=False,
        elem_classes="plain",
    )
