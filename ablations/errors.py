"""Errors that are the user's to mend: one clear line, exit status 2."""

from reports.errors import UserError

__all__ = ["UserError"]
