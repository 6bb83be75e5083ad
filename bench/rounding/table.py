"""The record of all conditions, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from .conditions import CONDITIONS, GUIDANCE
from .moves import moves

__all__ = ["markdown", "rows"]

Images = Mapping[str, npt.NDArray[np.float32]]
Row = Mapping[str, Any]


def rows(drawn: Mapping[str, Images], about: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """One row per condition and guidance.

    Args:
        drawn: condition -> guidance -> (N, C, H, W) images.
        about: condition -> what it was drawn on.
    """
    return [
        {
            "condition": condition.name,
            "against": condition.against,
            "guidance": str(guidance),
            "batch": condition.batch,
            "path": "fast" if condition.fast else "plain",
            **about[condition.name],
            **asdict(
                moves(drawn[condition.name][str(guidance)], drawn[condition.against][str(guidance)])
            ),
        }
        for condition in CONDITIONS
        if condition.name != condition.against and condition.name in drawn
        for guidance in GUIDANCE
    ]


def markdown(record: Mapping[str, Any]) -> str:
    """Three tables: samples that move visibly, the largest move, the median move."""
    machine, found = record["machine"], record["rows"]
    text = f"""# How often rounding decides a sample

The same {found[0]["samples"]} seeds and targets of the setting `fashion`, DDIM-25, drawn again with
one thing changed. Guides are PPAP-5 banks of {record["steps"]} training steps. The reference is the
plain path at batch 64 on one thread. A sample's move is the largest difference of any of its
pixels, in grey levels of 255. AVX2 and SSE4.1 are emulated: PyTorch, oneDNN and MKL are held to
those instructions.

Drawn on {machine["cpu"]} ({machine["instruction_set"]}), {machine["cores"]} cores, with PyTorch
{machine["torch"]} at commit {machine["commit"]}, {machine["date"]}, by `python -m bench.rounding`.
"""
    tables: tuple[tuple[str, Callable[[Row], str]], ...] = (
        ("Samples that move by more than one grey level", _visible),
        ("Largest move, grey levels", lambda row: _levels(row["largest"])),
        ("Median move, grey levels", lambda row: _levels(row["median"])),
    )
    return text + "".join(f"\n## {title}\n\n{_table(found, cell)}" for title, cell in tables)


def _table(found: list[Row], cell: Callable[[Row], str]) -> str:
    columns = list(dict.fromkeys(row["guidance"] for row in found))
    lines = [["against", "changed", *columns], [":--", ":--", *["--:"] * len(columns)]]
    for against, condition in dict.fromkeys((row["against"], row["condition"]) for row in found):
        cells = {row["guidance"]: cell(row) for row in found if row["condition"] == condition}
        lines.append([against, condition, *(cells[column] for column in columns)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _visible(row: Row) -> str:
    if row["identical"] == row["samples"]:
        return "bit-identical"
    return f"{row['over'] / row['samples']:.1%}"


def _levels(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"
