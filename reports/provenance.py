"""Where each number of the page is from: the rows' records, for its script to show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from reports.records import Folder, Records

__all__ = ["provenance", "row_name"]


def row_name(folder: Folder, key: str) -> str:
    """What a row is called within a page of several folders."""
    return f"{folder.setting}-{folder.budget}/{key}"


def provenance(folders: Sequence[Folder]) -> str:
    """JSON, safe within a script element: every row's record by `row_name`.

    A record that was compared has its differences to the reference row too.
    """
    found = {
        row_name(folder, key): record | {"differences": _differences(records, key)}
        for folder in folders
        for records in folder.sweeps
        for key, record in records.raw.items()
    }
    text = json.dumps(_finite(found), sort_keys=True, separators=(",", ":"), allow_nan=False)
    # Within a script element "</" may end it and "<!--" may hide its end.
    return text.replace("<", "\\u003c")


def _differences(records: Records, key: str) -> list[dict[str, Any]]:
    if records.comparisons.empty:
        return []
    own = records.comparisons[records.comparisons["row"] == key]
    return [{str(k): v for k, v in line.items()} for line in own.to_dict("records")]


def _finite(value: Any) -> Any:
    """The value with null for NaN, which browsers do not read."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
