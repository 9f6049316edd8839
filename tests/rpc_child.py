"""A child for tests/test_rpc.py: counts, waits, fails, dies, and prints where replies go."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from jobs.rpc import Request, RpcServer


def work(request: Request) -> None:
    match request.method:
        case "count":
            print("noise from a library")
            for number in range(request.params["to"]):
                request.send(number)
            request.done()
        case "until_cancelled":
            request.send("working")
            while not request.cancelled:
                time.sleep(0.01)
            Path(request.params["file"]).write_text("cancelled")
            request.done()
        case "fail":
            request.fail("You set x to 1.", "You set y to 2.")
        case "die":
            os._exit(3)


if __name__ == "__main__":
    RpcServer().serve(lambda request: threading.Thread(target=work, args=(request,), daemon=True).start())
