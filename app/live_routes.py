"""/live: what pages ask for besides Gradio's own calls: snapshots, sockets, and the buttons of live pages."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse

from app.live import Channel, Hub, RunChannel
from app.messages import Viewer, dumps
from app.run_words import header
from jobs.errors import UserError

RowId = Annotated[int, Path(le=2**63 - 1)]  # SQLite knows no larger one
GONE = 4404  # close code: there is no such run, do not connect again
log = logging.getLogger("graft.live")

BEHIND = 4408  # close code: too slow; connect again and ask for what was missed


def router(hub: Hub) -> APIRouter:
    api = APIRouter(prefix="/live")
    runs = hub.service.runs

    @api.get("/runs/{run_id}/snapshot")
    async def snapshot(run_id: RowId, request: Request) -> Response:
        body = await hub.snapshot(run_id)
        headers = {"Cache-Control": "no-store", "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
        else:
            body = gzip.decompress(body)
        return Response(body, media_type="application/json", headers=headers)

    @api.post("/runs/{run_id}/{action}")
    def act(run_id: RowId, action: str) -> Response:
        match action:
            case "stop":
                runs.stop(run_id)
            case "resume":
                runs.resume(run_id)
            case "delete":
                runs.delete(run_id)
                return JSONResponse({"location": "/runs"})
            case _:
                raise UserError(f"Nobody can {action!r} a run.")
        hub.forget(run_id)
        return JSONResponse({"run": header(hub.service, runs.get(run_id))})

    @api.post("/examples/{name}/start")
    def start_example(name: str) -> Response:
        return JSONResponse({"location": f"/run?id={hub.service.examples.start(name).id}"})

    @api.post("/starter/prepare")
    def prepare_starter() -> Response:
        hub.service.preparation.start()
        return JSONResponse({})

    @api.websocket("/runs/{run_id}")
    async def run_socket(socket: WebSocket, run_id: RowId, after: int = 0, answers: int = -1) -> None:
        await socket.accept()
        try:
            channel = await hub.run_channel(run_id)
        except Exception as error:
            await _turn_away(socket, error)
            return
        await _serve(hub, channel, Viewer(after), socket, channel.hello(answers))

    @api.websocket("/fragments/{name}")
    async def fragment_socket(socket: WebSocket, name: str) -> None:
        await socket.accept()
        try:
            channel = await hub.fragment_channel(name)
        except Exception as error:
            await _turn_away(socket, error)
            return
        await _serve(hub, channel, Viewer(), socket, channel.hello())

    return api


async def _turn_away(socket: WebSocket, error: Exception) -> None:
    if isinstance(error, UserError):
        text = str(error)
    else:
        log.error("a live part could not be shown", exc_info=error)
        text = "Something went wrong on our side. The details are in logs/server.log, in Graft's folder."
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_text(dumps({"gone": text}))
        await socket.close(GONE)


async def _serve(hub: Hub, channel: Channel, viewer: Viewer, socket: WebSocket, hello: str) -> None:
    """Send what happens until the viewer leaves. It joins before it catches up, so that nothing falls between."""
    channel.viewers.add(viewer)
    reader = asyncio.create_task(_listen(socket, viewer))
    try:
        await socket.send_text(hello)
        if isinstance(channel, RunChannel):
            while update := await asyncio.to_thread(channel.missed, viewer):
                text, viewer.last_id = update.text_after(viewer.last_id)
                await socket.send_text(str(text))
        while not viewer.lost and (message := await viewer.queue.get()) is not None:
            if isinstance(message, str):
                await socket.send_text(message)
                continue
            text, viewer.last_id = message.text_after(viewer.last_id)
            if text is not None:
                await socket.send_text(text)
        await socket.close(BEHIND if viewer.lost else 1000)
    except (WebSocketDisconnect, RuntimeError):
        pass  # the page was closed
    finally:
        reader.cancel()
        hub.leave(channel, viewer)


async def _listen(socket: WebSocket, viewer: Viewer) -> None:
    """What a page says: {"log": offset} opens its log from there (-1: its end), {"log": null} closes it."""
    try:
        while True:
            offset = (await socket.receive_json())["log"]
            viewer.log_offset = int(offset) if offset is not None else None
    except (WebSocketDisconnect, RuntimeError, ValueError, KeyError, TypeError):
        viewer.end()
