"""Who may talk to the server: known host names only, and only pages that this server served may change things.

Gradio reflects every Origin where the Host is not local; this stands before it. It keeps other web sites, and names
that were rebound to this address, out. It does not say who someone is: there is no login.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
WILDCARDS = frozenset({"0.0.0.0", "::", ""})


def known_names(host: str) -> frozenset[str]:
    """The names under which a server on `host` answers."""
    names = {"localhost", "127.0.0.1", "::1"}
    if host in WILDCARDS:
        here = socket.gethostname().lower()
        names |= {here, f"{here}.local"}
    else:
        names.add(host.lower())
    return frozenset(names)


def proxy_names() -> frozenset[str]:
    """The names of a proxy in front of Graft: a Space's own, and what GRAFT_HOSTS lists, separated by commas."""
    listed = f"{os.environ.get('GRAFT_HOSTS', '')},{os.environ.get('SPACE_HOST', '')}"
    return frozenset(name.strip().lower() for name in listed.split(",") if name.strip())


class Access:
    """ASGI middleware: refuses an unknown Host (400) and, for sockets and changes, a foreign Origin (403)."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._any_address = host in WILDCARDS  # a name can be rebound to this address, an address cannot
        self._names = known_names(host)
        self._proxies = proxy_names()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"host", b"origin")}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE
        if not self._knows(host):
            text = f"Graft does not answer under the name {host!r}. Start it with --host, or list it in GRAFT_HOSTS."
            await _refuse(400, text, scope, receive, send)
        elif changes and origin is not None and not self._same(origin, host):
            await _refuse(403, "This request comes from another site.", scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _knows(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return name in self._names or name in self._proxies or (self._any_address and _is_address(name))

    def _same(self, origin: str, host: str) -> bool:
        """Whether an Origin is a page of this very server; behind a named proxy the Host may be another."""
        try:
            parts = urlsplit(origin)
            name = (parts.hostname or "").lower()
        except ValueError:
            return False
        return (parts.netloc != "" and parts.netloc.lower() == host.lower()) or name in self._proxies


async def _refuse(status: int, text: str, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": text[:120]})
    else:
        await PlainTextResponse(text, status)(scope, receive, send)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
