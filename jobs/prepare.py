"""The starter model from the command line, with a progress bar: what `make run` calls before it serves.

python -m jobs.prepare [--home FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jobs.errors import UserError
from jobs.service.models import Models
from storage.db import connect, migrate
from storage.files import Home


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.prepare", description="Convert the starter model, once.")
    parser.add_argument("--home", type=Path, help="Graft's folder (default: GRAFT_HOME, else ./graft-data)")
    home = Home.at(parser.parse_args(arguments).home)
    migrate(home.database)
    engine = connect(home.database)
    shown = False
    try:
        for progress in Models(home, engine).prepare_starter():
            shown = True
            filled = round(progress.fraction * 30)
            bar = f"Starter model [{'#' * filled}{'.' * (30 - filled)}] {progress.fraction:4.0%} {progress.text}"
            # One line that is drawn over on a terminal; a line a step in a log.
            print(f"\r{bar:<100}" if sys.stdout.isatty() else bar, end="" if sys.stdout.isatty() else "\n", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if shown and sys.stdout.isatty():
            print()
        engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main())
