"""Start Graft: `python app.py`, with --host, --port and --home. The work is in app/server.py."""

from __future__ import annotations

import argparse
import os
import sys

from jobs.errors import UserError


def main() -> int:
    on_space = bool(os.environ.get("SPACE_ID"))
    parser = argparse.ArgumentParser(description="Graft: fine-tune a language model in the browser.")
    parser.add_argument("--host", default="0.0.0.0" if on_space else "127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument(
        "--home", default=None, help="folder that keeps everything (default: GRAFT_HOME or ./graft-data)"
    )
    arguments = parser.parse_args()
    from app.server import serve  # imports Gradio, which takes seconds: not for --help

    try:
        serve(arguments.home, arguments.host, arguments.port)
    except UserError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
