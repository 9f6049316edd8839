"""Everything the app, or a script, calls. One `Service` a process and a home; each part has its own file.

service = Service(Home.at("graft-data"))
*_, dataset = service.datasets.add(Path("chats.jsonl"))
plan = service.planning.plan(service.planning.defaults(base_model_id=1, dataset_id=dataset.id))
run = service.runs.start(plan.spec, 1, dataset.id)
"""

from __future__ import annotations

from jobs.hardware import this_machine
from jobs.spec import RunSpec
from storage.db import connect, migrate
from storage.files import Home
from storage.runs import Changes


class Service:
    """Opens the catalog (migrating it first) and hands out its parts. `close` ends the children it started."""

    def __init__(self, home: Home) -> None:
        from jobs.inference.slot import Slot
        from jobs.service.datasets import Datasets
        from jobs.service.examples import Examples
        from jobs.service.mending import Mending
        from jobs.service.models import Models
        from jobs.service.paces import Paces
        from jobs.service.planning import Planning
        from jobs.service.playground import Playground
        from jobs.service.predictions import Predictions
        from jobs.service.preparation import Preparation
        from jobs.service.runs import Runs

        self.home = home
        migrate(home.database)
        self.engine = connect(home.database)
        self.models = Models(home, self.engine)
        self.preparation = Preparation(self.models)
        self.datasets = Datasets(home, self.engine, self.models)
        self.mending = Mending(self.engine, self.datasets)
        self.planning = Planning(self.models, self.datasets, Paces(self.engine))
        slot = Slot(home.logs / "engine.txt")
        self.playground = Playground(self.engine, self.models, slot)
        self.predictions = Predictions(self.models, slot, training=self._training)
        self.runs = Runs(home, self.engine, make_room=self._make_room)
        self.examples = Examples(self.models, self.datasets, self.planning, self.runs)

    def _training(self) -> str | None:
        """The name of the run that trains now."""
        return next((run.name for run in self.runs.list(limit=20) if run.state.active), None)

    def _make_room(self, spec: RunSpec) -> None:
        """The playground's engine yields its memory to training: always on a GPU, on a CPU where it is needed."""
        hardware = this_machine()
        if hardware.device == "cuda" or (spec.predicted_memory or 0) > hardware.memory_free:
            self.playground.yield_memory()

    def changes(self) -> Changes:
        """Asks, in microseconds, whether the catalog has changed since the last question. For one thread; close it."""
        return Changes(self.home.database)

    def close(self) -> None:
        self.playground.close()
        self.datasets.close()
        self.engine.dispose()
