"""Reading result records: JSON lines, checked at the door, as pandas frames.

Where several records say the same of the same row, the last counts, whatever their keys
(:func:`reports.identity.latest`): no table has a row twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.amortised import with_cheaper_after
from reports.arms import Arm, Claim
from reports.claims import Finding, settle
from reports.grids import Grid, Strip, read_grids
from reports.identity import GRIDS_FILE, RECORDS_FILE, latest
from reports.metrics import LEGACY, METRICS
from reports.schema import RecordError, is_on_scale, parse

__all__ = [
    "RECORDS_FILE",
    "Failure",
    "Folder",
    "RecordError",
    "Records",
    "SweepInfo",
    "method_rank",
    "read_folder",
]

METHOD_ORDER = ("unguided", "naive", "single", "multi-experts", "ppap")
NO_PREDICTOR = "none"
REHEARSAL = "rehearsal"
"""Begins the budget, and ends the folder, of runs on seeded weights."""
FACTS = ("supervision", "experts", "adapter", "sampler", "scale", "samples")
Record = dict[str, Any]


@dataclass(frozen=True)
class SweepInfo:
    """What a sweep says of itself.

    Attributes:
        name: as on the command line.
        title: one line.
        description: a paragraph.
        axes: what it varies, and on which scale each is drawn: linear, log or category.
        metrics: columns of its table.
        figure: how its rows are drawn: lines, points, pareto or none.
    """

    name: str
    title: str
    description: str
    axes: dict[str, str]
    metrics: tuple[str, ...]
    figure: str

    @classmethod
    def of(cls, name: str, record: Record | None) -> SweepInfo:
        """From its record; sweeps of old have none."""
        if record is None:
            return cls(name, "Methods of guidance compared", "", {}, LEGACY, "none")
        axes = {axis: record["scales"].get(axis, "category") for axis in record["axes"]}
        metrics = tuple(metric for metric in record["metrics"] if metric in METRICS)
        title, text = record["title"], record["description"]
        return cls(name, title, text, axes, metrics, record["figure"])


@dataclass(frozen=True)
class Failure:
    """A cell that went wrong and has not succeeded since.

    Attributes:
        label: of the cell.
        reason: one line.
        needed_by: results that are missing for it.
    """

    label: str
    reason: str
    needed_by: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Records:
    """The records of one sweep; a kind that is absent is an empty frame.

    Attributes:
        info: what the sweep says of itself.
        setting: which scale of the experiment.
        budget: how much of it was run.
        rows: a table row each, by predictor; ``axes`` holds a dictionary, and the provenance
            is flattened into ``commit, dirty, hardware, feature_extractor, samples_per_fid``.
        comparisons: long: row, reference (keys), method, metric, value, low, high, p,
            p_corrected, comparisons.
        noise_accuracy: long: method, predictor, seed, timestep (0..999), accuracy (0..1).
        tradeoff: long: method, predictor, sampler (empty in records of old), scale, seed, samples,
            accuracy (0..1), fid.
        grids: sample grids, sorted as the rows are.
        strips: guided trajectories.
        arms: curves over guidance scales, in the order of the tables.
        findings: its claims, tested, in the order in which they were recorded.
        raw: the rows' records as they are, by key, in the order in which they were recorded.
    """

    info: SweepInfo
    setting: str
    budget: str
    rows: pd.DataFrame
    comparisons: pd.DataFrame
    noise_accuracy: pd.DataFrame
    tradeoff: pd.DataFrame
    grids: tuple[Grid, ...]
    strips: tuple[Strip, ...]
    arms: tuple[Arm, ...]
    findings: tuple[Finding, ...]
    raw: dict[str, Record]

    @classmethod
    def read(cls, folder: Path) -> Records:
        """The first sweep of a folder; see :func:`read_folder`."""
        return read_folder(folder).sweeps[0]

    @property
    def sweep(self) -> str:
        """Name of the sweep."""
        return self.info.name

    @property
    def rehearsed(self) -> bool:
        """Whether the weights are seeded and nothing here is a result."""
        return self.budget.startswith(REHEARSAL)

    @property
    def methods(self) -> list[str]:
        """Every method of any record, in the order of the tables."""
        found = {picture.method for picture in (*self.grids, *self.arms)}
        for frame in (self.rows, self.noise_accuracy, self.tradeoff):
            found |= set() if frame.empty else set(frame["method"])
        return sorted(found, key=method_rank)


@dataclass(frozen=True, eq=False)
class Folder:
    """A results folder.

    Attributes:
        path: where it is.
        setting: which scale of the experiment.
        budget: how much of it was run.
        sweeps: in the order in which they were first run.
        failures: what is missing.
    """

    path: Path
    setting: str
    budget: str
    sweeps: tuple[Records, ...]
    failures: tuple[Failure, ...]

    @property
    def machines(self) -> tuple[str, ...]:
        """Every machine that a row or curve was seen on, in words, with its version of torch."""
        stamps = [r["provenance"] for records in self.sweeps for r in records.raw.values()]
        stamps += [arm.record["provenance"] for records in self.sweeps for arm in records.arms]
        seen = [(m, s) for s in stamps for m in s.get("machines", [s["hardware"]])]
        described = [f"{machine_name(m)}, torch {s['packages'].get('torch')}" for m, s in seen]
        return tuple(dict.fromkeys(described))


def read_folder(folder: Path) -> Folder:
    """Read ``records.jsonl`` and, where pictures are recorded, ``grids.npz``.

    Raises:
        RecordError: if the folder, a file, a line or an array is missing or malformed, or if
            the folder mixes settings or budgets.
    """
    path = folder / RECORDS_FILE
    if not path.is_file():
        raise RecordError(f"{folder} has no {RECORDS_FILE}", "run the sweep that fills it")
    found: list[Record] = []
    identity: tuple[str, str] | None = None
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        record = parse(line, f"{path}:{number}")
        whose = (record["setting"], record["budget"])
        identity = identity or whose
        if whose != identity:
            raise RecordError(
                f"{path}:{number}: a record of {'/'.join(whose)} among {'/'.join(identity)}",
                "keep one setting and budget per folder",
            )
        found.append(record)
    if identity is None:
        raise RecordError(f"{path} is empty", "run the sweep that fills it")
    records = [dict(record) for record in latest(found)]
    pictures = sorted([*_of(records, "grid"), *_of(records, "strip")], key=_order)
    grids = read_grids(folder / GRIDS_FILE, pictures)
    names = dict.fromkeys(r["sweep"] for r in records if r["kind"] != "failure")
    failures = [r for r in _of(records, "failure") if not r["resolved"]]
    compared = [_curves_and_claims(name, records) for name in names]
    sweeps = zip(names, compared, settle(compared), strict=True)
    return Folder(
        folder,
        *identity,
        tuple(
            _records(name, identity, records, grids, arms, findings)
            for name, (_, arms), findings in sweeps
        ),
        tuple(Failure(r["label"], r["reason"], tuple(r["needed_by"])) for r in failures),
    )


def machine_name(hardware: Record) -> str:
    """A machine in words; records of old do not know instructions and threads."""
    parts = [f"{hardware['cpu']} ({hardware['cores']} cores)"]
    if "instruction_set" in hardware:
        parts.append(hardware["instruction_set"])
        threads = hardware["threads"]
        parts.append(f"{threads} thread{'s' * (threads != 1)} per worker")
    parts.append(f"{hardware['memory_gib']:.0f} GiB")
    return ", ".join(parts + [hardware["accelerator"]] * bool(hardware["accelerator"]))


def method_rank(method: str) -> tuple[int, str]:
    """Sort key of a method: the paper's order, then any others by name."""
    known = method in METHOD_ORDER
    return (METHOD_ORDER.index(method) if known else len(METHOD_ORDER), method)


def _curves_and_claims(name: str, records: list[Record]) -> tuple[list[Claim], list[Arm]]:
    own = [record for record in records if record["sweep"] == name]
    arms = [Arm.of(record) for record in sorted(_of(own, "curve"), key=_order)]
    return [Claim.of(record) for record in _of(own, "claim")], arms


def _records(
    name: str,
    identity: tuple[str, str],
    records: list[Record],
    grids: dict[str, Grid | Strip],
    arms: list[Arm],
    findings: list[Finding],
) -> Records:
    own = [record for record in records if record["sweep"] == name]
    infos = _of(own, "sweep")
    info = SweepInfo.of(name, infos[-1] if infos else None)
    # Rows of a sweep with axes keep the order in which they were run; others the paper's.
    recorded = _of(own, "row")
    _require_numbers(info, recorded)
    rows = sorted(recorded, key=_group if info.axes else _order)
    curves = [
        pd.DataFrame(_columns(record)) for record in sorted(_of(own, "noise_accuracy"), key=_order)
    ]
    pictures = [picture for key, picture in grids.items() if key in {r["key"] for r in own}]
    compared = [line for record in _of(own, "comparison") for line in _differences(record)]
    return Records(
        info,
        *identity,
        rows=with_cheaper_after(pd.DataFrame([_row(record) for record in rows])),
        comparisons=pd.DataFrame(compared),
        noise_accuracy=pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
        tradeoff=pd.DataFrame([_point(r) for r in sorted(_of(own, "tradeoff"), key=_order)]),
        grids=tuple(picture for picture in pictures if isinstance(picture, Grid)),
        strips=tuple(picture for picture in pictures if isinstance(picture, Strip)),
        arms=tuple(arms),
        findings=tuple(findings),
        raw={record["key"]: record for record in recorded},
    )


def _require_numbers(info: SweepInfo, rows: list[Record]) -> None:
    """Raises a RecordError where a numeric axis has a word, or a logarithmic one no logarithm."""
    for row in rows:
        for axis, value in row.get("axes", {}).items():
            scale = info.axes.get(axis, "category")
            if not is_on_scale(value, scale):
                raise RecordError(
                    f"sweep {info.name}, row {row['method']}: {axis} is on a {scale} scale and "
                    f"cannot be {value!r}",
                    "mend or delete the record, or run its cell again",
                )


def _of(records: list[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def _group(record: Record) -> tuple[Any, ...]:
    return (record["predictor"] != NO_PREDICTOR, record["predictor"])


def _order(record: Record) -> tuple[Any, ...]:
    rank = method_rank(record["method"])
    # DDIM's spacing sorts after bare step counts: the quick sampler comes first.
    sampler = not str(record.get("sampler", "ddim")).startswith("ddim")
    return (sampler, *_group(record), rank, record.get("scale") or 0.0, record["key"])


def _row(record: Record) -> dict[str, Any]:
    provenance = record["provenance"]
    machines = [machine_name(seen) for seen in provenance.get("machines", [provenance["hardware"]])]
    measured = {}
    for metric in METRICS:
        for name in (metric, f"{metric}_low", f"{metric}_high"):
            measured[name] = _figure(record.get(name))
    return {
        **{name: record[name] for name in ("key", "method", "predictor")},
        **{name: record.get(name) for name in FACTS},
        "axes": record.get("axes", {}),
        "reference": record.get("reference", False),
        "seeds": tuple(record.get("seeds", ())),
        **measured,
        "commit": provenance["commit"],
        "dirty": provenance["dirty"],
        "hardware": " and ".join(dict.fromkeys(machines)),
        "feature_extractor": provenance.get("feature_extractor"),
        "samples_per_fid": provenance.get("samples_per_fid"),
    }


def _differences(record: Record) -> list[dict[str, Any]]:
    common = {name: record[name] for name in ("row", "reference", "method", "comparisons")}
    return [
        common | {"metric": metric} | {name: _figure(value) for name, value in difference.items()}
        for metric, difference in record["differences"].items()
    ]


def _columns(record: Record) -> dict[str, Any]:
    return {
        **{name: record[name] for name in ("method", "predictor", "seed")},
        "timestep": record["timesteps"],
        "accuracy": np.array(record["accuracy"], dtype=np.float64),
    }


def _point(record: Record) -> dict[str, Any]:
    named = {name: record[name] for name in ("method", "predictor", "scale", "seed", "samples")}
    named["sampler"] = record.get("sampler", "")
    return named | {name: _figure(record[name]) for name in ("accuracy", "fid")}


def _figure(value: float | None) -> float:
    """NaN for what was not measured."""
    return math.nan if value is None else float(value)
