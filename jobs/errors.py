"""The one error that reaches a person. Only the edges (pages, command line) turn it into a message."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """What you set, what we found, what to do.

    Several problems of one form or file travel together in `problems`.
    """

    def __init__(self, *problems: str) -> None:
        self.problems: tuple[str, ...] = problems or ("Something went wrong.",)
        super().__init__(" ".join(self.problems))

    @classmethod
    def raise_all(cls, problems: Iterable[str]) -> None:
        """Raise one error with every problem; do nothing where there is none."""
        if found := tuple(problems):
            raise cls(*found)


class RowProblem(Exception):
    """Why one row of a dataset cannot be used, in one sentence without a row number."""
