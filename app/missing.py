"""What stands at an address that names no page: a page in the app's look, for browsers; programs get JSON."""

from __future__ import annotations

from fastapi import Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from app.components import escape
from app.theme import head, static_url

_FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


async def not_found(request: Request, error: Exception) -> Response:
    """Answers 404: with HTML where someone opened the address in a browser."""
    assert isinstance(error, HTTPException)
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        return HTMLResponse(page_html(request.url.path), 404)
    return await http_exception_handler(request, error)


def page_html(path: str) -> str:
    # Gradio's own rules are not here: what the app takes from them is said below. The shell's script wants a body.
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>No such page · Graft</title></head><body>{head()}
<style>body {{ margin: 0; color: var(--g-text); font: 15px/1.5 {_FONT}; }}
.brand {{ margin-bottom: 18px; }}
.empty h1 {{ margin: 0 0 6px; font-size: 22px; color: var(--g-text); }} .empty p {{ overflow-wrap: anywhere; }}</style>
<main class="page"><a class="brand" href="/"><img src="{static_url("icon.svg")}" width="28" height="28"
alt="">Graft</a><div class="card empty"><h1>There is no such page</h1>
<p>Nothing in Graft has the address {escape(path[:200])}.</p>
<div class="buttons"><a class="button primary" href="/">Home</a> <a class="button" href="/runs">All runs</a></div>
</div></main></body></html>"""
