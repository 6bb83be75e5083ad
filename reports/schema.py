"""What a line of records must be: checked at the door, told in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from reports.errors import UserError
from reports.metrics import METRICS

__all__ = ["POINT_MEASURES", "QUANTITIES", "Quantity", "RecordError", "is_on_scale", "parse"]

Quantity = Literal[
    "score_at_matched_distance",
    "distance_at_matched_score",
    "distance_ratio_at_high_score",
    "saturation_ratio_at_high_score",
    "recall_at_high_score",
    "area",
    "best_score",
    "collapse",
]
QUANTITIES = get_args(Quantity)
"""What a claim may compare of two curves: see :mod:`ppap.evaluation.curves`."""
Check = Callable[[Any], bool]


class RecordError(UserError):
    """Records that cannot be reported on: where, what is wrong, and the mend."""


def parse(line: bytes, where: str) -> dict[str, Any]:
    """One record.

    Raises:
        RecordError: if it is malformed.
    """
    mend = "mend or delete the line, or run its cell again"
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:  # of the syntax or of the encoding
        raise RecordError(f"{where}: not JSON ({error})", mend) from None
    kind = record.get("kind") if isinstance(record, dict) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise RecordError(f"{where}: kind {kind!r} is none of {', '.join(_FIELDS)}", mend)
    fault = _fault(record, _COMMON | _FIELDS[kind])
    if not fault and kind == "row":
        fault = _row_fault(record)
    if not fault and kind == "noise_accuracy" and not _aligned(record):
        fault = "timesteps and accuracy differ in length"
    if not fault and kind in ("tradeoff", "grid", "strip") and "sampler" in record:
        fault = _fault(record, {"sampler": _text})
    if not fault and kind == "grid" and "score" in record:
        fault = _fault(record, {"score": _number})
    if not fault and kind == "curve":
        fault = _curve_fault(record)
    if not fault and kind == "claim":
        fault = _claim_fault(record)
    if fault:
        raise RecordError(f"{where}: {kind}: {fault}", mend)
    return dict(record)


def is_on_scale(value: Any, scale: str) -> bool:
    """Whether a row's value can be drawn on an axis whose scale is linear, log or category."""
    return scale == "category" or (_number(value) and (value > 0 or scale != "log"))


def _curve_fault(record: dict[str, Any]) -> str:
    """Facts where they are told, every point, and that the units pair up scale by scale."""
    present = {name: check for name, check in _CURVE_FACTS.items() if name in record}
    if fault := _fault(record, present):
        return fault
    score = _share if record["metric"] == "accuracy" else _number
    scales: dict[int, list[float]] = {unit: [] for unit in record["units"]}
    for place, point in enumerate(record["points"]):
        told = {name: check for name, check in POINT_MEASURES.items() if name in point}
        fits = _POINT | {"score": lambda value: _number(value) and score(value)} | told
        if fault := _fault(point, fits, f"points[{place}]."):
            return fault
        if point["unit"] not in scales:
            return f"points[{place}].unit {point['unit']} is none of units {record['units']}"
        scales[point["unit"]].append(point["scale"])
    first = record["units"][0]
    for unit, found in scales.items():
        if len(set(found)) < len(found):
            return f"unit {unit} has a scale twice"
        if set(found) != set(scales[first]):
            return f"units {first} and {unit} were not measured at the same scales"
    return _provenance_fault(record["provenance"], _PROVENANCE)


def _claim_fault(record: dict[str, Any]) -> str:
    present = {name: check for name, check in _CLAIM_FACTS.items() if name in record}
    if record["expected"] == "equivalent":
        present["margin"] = _positive
        if "margin" not in record:
            return "margin is missing, within which ours and theirs are equivalent"
    return _fault(record, present)


def _row_fault(record: dict[str, Any]) -> str:
    wanted = dict(_PROVENANCE)
    if "fid" in record:
        wanted |= {"feature_extractor": _text, "samples_per_fid": _whole}
    present: dict[str, Check] = {}
    for name, metric in METRICS.items():
        check = _share if metric.share else _measured
        present |= {key: check for key in (name, f"{name}_low", f"{name}_high") if key in record}
    present |= {name: check for name, check in _FACTS.items() if name in record}
    return _fault(record, present) or _provenance_fault(record["provenance"], wanted)


def _provenance_fault(provenance: dict[str, Any], wanted: dict[str, Check]) -> str:
    return (
        _fault(provenance, wanted, "provenance.")
        or _machine_fault(provenance["hardware"], "provenance.hardware.")
        or _machines_fault(provenance.get("machines", []))
    )


def _machines_fault(machines: Any) -> str:
    if not isinstance(machines, list) or not all(map(_mapping, machines)):
        return "provenance.machines is no list of machines"
    return next(filter(None, (_machine_fault(m, "provenance.machines.") for m in machines)), "")


def _machine_fault(machine: dict[str, Any], prefix: str) -> str:
    # Records of old do not tell of instructions; those that do tell of threads too.
    present = _INSTRUCTIONS if _INSTRUCTIONS.keys() & machine.keys() else {}
    return _fault(machine, _HARDWARE | present, prefix)


def _fault(record: dict[str, Any], fields: dict[str, Check], prefix: str = "") -> str:
    for name, fits in fields.items():
        if name not in record:
            return f"{prefix}{name} is missing"
        if not fits(record[name]):
            return f"{prefix}{name} cannot be {json.dumps(record[name])[:60]}"
    return ""


def _aligned(record: dict[str, Any]) -> bool:
    return len(record["timesteps"]) == len(record["accuracy"])


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _measured(value: Any) -> bool:
    """A number, or null or NaN for what was not measured."""
    unmeasured = value is None or (isinstance(value, float) and math.isnan(value))
    return unmeasured or _number(value)


def _share(value: Any) -> bool:
    return _measured(value) and not (_number(value) and not 0 <= value <= 1)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and bool(value) and all(map(check, value))


def _differences(value: Any) -> bool:
    """Of each metric, a difference with its interval and its p values."""
    names = ("value", "low", "high", "p", "p_corrected")
    return _mapping(value) and all(
        _mapping(one) and set(names) == one.keys() and all(map(_measured, one.values()))
        for one in value.values()
    )


def _list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


_COMMON: dict[str, Check] = dict.fromkeys(("sweep", "setting", "budget", "key"), _text)
_WHOSE: dict[str, Check] = dict.fromkeys(("method", "predictor"), _text)
_FACTS: dict[str, Check] = {
    **dict.fromkeys(("supervision", "sampler", "adapter"), _text),
    **dict.fromkeys(("experts", "samples"), _whole),
    "scale": _measured,
    "seeds": _list_of(_whole),
    "axes": _mapping,
    "reference": _flag,
}
_FIELDS: dict[str, dict[str, Check]] = {
    "row": {**_WHOSE, "provenance": _mapping},
    "noise_accuracy": {
        **_WHOSE,
        "seed": _whole,
        "timesteps": _list_of(_whole),
        "accuracy": _list_of(_share),
    },
    "tradeoff": {
        **_WHOSE,
        "scale": _number,
        "seed": _whole,
        "samples": _whole,
        "accuracy": _share,
        "fid": _measured,
    },
    "grid": {**_WHOSE, "scale": _measured, "array": _text, "labels": _list_of(_text)},
    "strip": {
        **_WHOSE,
        "array": _text,
        "labels": _list_of(_text),
        "columns": _list_of(_text),
        "experts": _list_of(lambda value: value is None or _whole(value)),
    },
    "sweep": {
        "title": _text,
        "description": _text,
        "axes": _list,
        "metrics": _list,
        "scales": _mapping,
        "figure": lambda value: value in ("lines", "points", "pareto", "none"),
        "headline": _flag,
    },
    "comparison": {
        **_WHOSE,
        "row": _text,
        "reference": _text,
        "comparisons": _whole,
        "differences": _differences,
    },
    "curve": {
        **_WHOSE,
        "sampler": _text,
        "units": lambda value: _list_of(_whole)(value) and len(set(value)) == len(value),
        "metric": _text,
        "higher_is_better": _flag,
        "points": _list_of(_mapping),
        "provenance": _mapping,
    },
    "claim": {
        **_WHOSE,
        **dict.fromkeys(("statement", "source", "ours", "theirs", "family"), _text),
        "quantity": lambda value: value in QUANTITIES,
        "expected": lambda value: value in ("greater", "less", "equivalent"),
    },
    "failure": {"label": _text, "reason": _text, "needed_by": _list, "resolved": _flag},
}
_CURVE_FACTS: dict[str, Check] = {
    **dict.fromkeys(("supervision", "adapter"), _text),
    **dict.fromkeys(("experts", "trained_steps"), _whole),
    **dict.fromkeys(("reference", "unbounded"), _flag),
    "axes": _mapping,
    "chosen": _list,
}
_POINT: dict[str, Check] = {
    "unit": _whole,
    "scale": lambda value: _number(value) and value >= 0,
    "samples": _whole,
    "pixel_fid": _positive,
}
"""Distances are drawn and interpolated by their logarithm."""
POINT_MEASURES: dict[str, Check] = {
    **dict.fromkeys(("fid", "kid", "pixel_kid", "belief"), _measured),
    **dict.fromkeys(
        (
            "precision",
            "recall",
            "pixel_precision",
            "pixel_recall",
            "pixel_coverage",
            "saturation",
            "saturation_bright",
        ),
        _share,
    ),
}
_CLAIM_FACTS: dict[str, Check] = {
    "margin": lambda value: value is None or _positive(value),
    "at": lambda value: value is None or _number(value),
    "sampler": _text,
    "comparisons": _whole,
}
_PROVENANCE: dict[str, Check] = {
    "commit": _text,
    "dirty": _flag,
    "created": _text,
    "wall_seconds": _number,
    "packages": _mapping,
    "hardware": _mapping,
}
_HARDWARE: dict[str, Check] = {
    "cpu": _text,
    "cores": _whole,
    "memory_gib": _number,
    "accelerator": lambda value: value is None or _text(value),
}
_INSTRUCTIONS: dict[str, Check] = {"instruction_set": _text, "threads": _whole, "limits": _mapping}
