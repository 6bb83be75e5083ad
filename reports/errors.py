"""Errors that are the user's to mend: one clear line, exit status 2."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """A wrong configuration, checkpoint, shape or missing data set.

    Args:
        problem: what was expected and what came.
        mend: what to do about it.
    """

    def __init__(self, problem: str, mend: str) -> None:
        super().__init__(problem, mend)
        self.problem = problem
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.problem}; {self.mend}"
