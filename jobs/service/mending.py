"""Mends of a dataset: which there are for it, what one would do, apply and undo. The uploaded file is never changed."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine

from jobs.data.mends import Mend, MendPreview, MendRef, Sample, fitting, mend
from jobs.errors import UserError
from jobs.service.datasets import Datasets, DatasetView, Progress
from storage.db import write
from storage.tables import Dataset

__all__ = ["Mend", "MendPreview", "MendRef", "Mending", "Sample"]


class Mending:
    def __init__(self, engine: Engine, datasets: Datasets) -> None:
        self._engine = engine
        self._datasets = datasets

    def offered(self, dataset_id: int) -> list[Mend]:
        """The mends that mean something for the dataset as its columns are mapped and need to be told nothing."""
        view = self._datasets.get(dataset_id)
        applied = {ref.name for ref in view.mends}
        found = fitting(view.mapping.shape) if view.mapping else []
        return [each for each in found if each.name not in applied and not type(each).Params.model_fields]

    def label(self, ref: MendRef) -> str:
        """A mend in words, with what it was told."""
        chosen, params = mend(ref)
        told = [str(item) for value in params.model_dump().values() for item in (value or ())]
        return chosen.label + (f" ({', '.join(told[:3])}{' ...' if len(told) > 3 else ''})" if told else "")

    def preview(self, dataset_id: int, ref: MendRef) -> Iterator[Progress | MendPreview]:
        """What a mend would do to all rows: progress, then the counts with the first rows it touches."""
        self._check(self._datasets.get(dataset_id), ref)
        yield from self._datasets.try_mend(dataset_id, ref)

    def apply(self, dataset_id: int, ref: MendRef) -> DatasetView:
        """Mend the dataset from now on: previews, checks and runs see its rows mended. Earlier runs keep what they had.

        A mend that is applied already takes its new settings. Raises UserError where it means nothing here.
        """
        view = self._datasets.get(dataset_id)
        self._check(view, ref)
        return self._keep(dataset_id, [*(each for each in view.mends if each.name != ref.name), ref])

    def undo(self, dataset_id: int, name: str) -> DatasetView:
        """Take a mend back; the others stay."""
        view = self._datasets.get(dataset_id)
        return self._keep(dataset_id, [ref for ref in view.mends if ref.name != name])

    def _keep(self, dataset_id: int, mends: list[MendRef]) -> DatasetView:
        ordered = sorted(mends, key=lambda ref: mend(ref)[0].order)  # texts before turns, turns before whole rows
        with write(self._engine) as session:
            session.get_one(Dataset, dataset_id).mends = [ref.model_dump(mode="json") for ref in ordered]
        return self._datasets.get(dataset_id)

    def _check(self, view: DatasetView, ref: MendRef) -> None:
        chosen, _ = mend(ref)
        if view.mapping is None:
            raise UserError(f"Graft could not tell what the columns of {view.name} mean. Choose them first.")
        if view.mapping.shape not in chosen.shapes:
            raise UserError(f"{chosen.label} means nothing for rows that are {view.mapping.shape.value}.")
