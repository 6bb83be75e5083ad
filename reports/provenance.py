"""Where each number of the page is from: the rows' records, for its script to show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from reports.claim_tables import evidence
from reports.claims import Finding
from reports.html import row_name
from reports.records import Folder, Records

__all__ = ["provenance"]


def provenance(folders: Sequence[Folder]) -> str:
    """JSON, safe within a script element: every row's record by `row_name`.

    A record that was compared has its differences to the reference row too. Of a curve the
    points are left out, which a CSV file has; of a claim its test is added.
    """
    found = {
        row_name(folder, key): record | {"differences": _differences(records, key)}
        for folder in folders
        for records in folder.sweeps
        for key, record in records.raw.items()
    }
    for folder in folders:
        for records in folder.sweeps:
            for arm in records.arms:
                told = {name: v for name, v in arm.record.items() if name != "points"}
                found[row_name(folder, arm.key)] = told
            for finding in records.findings:
                found[row_name(folder, finding.claim.key)] = _claim(records, finding)
    text = json.dumps(_finite(found), sort_keys=True, separators=(",", ":"), allow_nan=False)
    # Within a script element "</" may end it and "<!--" may hide its end.
    return text.replace("<", "\\u003c")


def _claim(records: Records, finding: Finding) -> dict[str, Any]:
    """The claim, its test, and the values of each unit that it was made of."""
    told = asdict(finding)
    return {
        "kind": "claim",
        "sweep": records.sweep,
        "method": finding.claim.name,
        "evidence": evidence(finding),
        **told.pop("claim"),
        **told,
    }


def _differences(records: Records, key: str) -> list[dict[str, Any]]:
    if records.comparisons.empty:
        return []
    own = records.comparisons[records.comparisons["row"] == key]
    return [{str(k): v for k, v in line.items()} for line in own.to_dict("records")]


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which browsers do not read."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
