"""Synthetic records of a small sweep: two predictors, five methods, every kind of record."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports.build import build

Record = dict[str, Any]

LABELS = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat"]
LABELS += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
PROVENANCE = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "packages": {"torch": "2.0"},
    "hardware": {"cpu": "Example CPU", "cores": 2, "memory_gib": 7.75, "accelerator": None},
    "feature_extractor": "inception-v3",
    "samples_per_fid": 1000,
    "created": "2023-06-18T00:00:00+00:00",
    "wall_seconds": 12.5,
    "configuration": {},
}
# method: (supervision, experts, trained share, accuracy, FID)
METHODS = {
    "unguided": ("none", 0, 0.0, 0.1012345678, 21.5),
    "naive": ("none", 0, 0.0, 0.31, 24.25),
    "single": ("data-free", 1, 0.0625, 0.64, 19.5),
    "multi-experts": ("labelled", 5, 0.0625, 0.8123456789, 17.25),
    "ppap": ("data-free", 5, 0.0625, 0.886, 15.125),
}


def row(method: str, predictor: str, **changes: Any) -> Record:
    """A record of kind ``row``; ``changes`` replace its fields."""
    supervision, experts, share, accuracy, fid = METHODS[method]
    record = {
        **_common("row", method, predictor),
        "supervision": supervision,
        "experts": experts,
        "trainable_share": share,
        "sampler": "ddim25",
        "scale": 0.0 if method == "unguided" else 3.0,
        "seeds": [0, 1, 2],
        "samples": 3000,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.015,
        "accuracy_high": accuracy + 0.0125,
        "fid": fid,
        "fid_low": fid - 0.75,
        "fid_high": fid + 0.5,
        "kid": 0.01,
        "inception_score": 4.0 + accuracy,
        "precision": 0.75,
        "recall": 0.5 - accuracy / 10,
        "images_per_second": 12.0 - experts,
        "peak_memory_mib": 512.0 + experts,
        "per_seed": [],
        "provenance": copy.deepcopy(PROVENANCE),
    }
    return record | changes


def noise_accuracy(method: str, predictor: str, seed: int) -> Record:
    """A record of kind ``noise_accuracy`` whose accuracy falls with the timestep."""
    steps = list(range(0, 1000, 50))
    reach = 150 + 800 * METHODS[method][3] + 30 * seed
    accuracy = [0.1 + 0.8 / (1 + (step / reach) ** 4) for step in steps]
    record = _common("noise_accuracy", method, predictor, seed)
    return record | {"seed": seed, "timesteps": steps, "accuracy": accuracy}


def tradeoff(method: str, predictor: str, scale: float, seed: int = 100) -> Record:
    """A record of kind ``tradeoff``: more scale, more accuracy, a FID that turns."""
    accuracy, fid = METHODS[method][3:]
    gain = scale / (scale + 1.5)
    record = _common("tradeoff", method, predictor, f"{scale}-{seed}")
    return record | {
        "scale": scale,
        "seed": seed,
        "samples": 500,
        "accuracy": 0.1 + gain * (accuracy - 0.1) + (seed - 100) / 100,
        "fid": fid + (scale - 3) ** 2 / 4 + (21.5 - fid) / (1 + scale),
    }


def grid(method: str, predictor: str) -> Record:
    """A record of kind ``grid``; its array is one of `write_folder`'s."""
    record = _common("grid", method, predictor)
    named = {"scale": 0.0 if method == "unguided" else 3.0, "array": f"{method}/{predictor}"}
    return record | named | {"labels": LABELS}


def sweep() -> list[Record]:
    """A whole sweep, deliberately not in the order of the table."""
    arms = [(m, p) for p in ("vit", "resnet") for m in reversed(METHODS) if m != "unguided"]
    trained = [(m, p, seed) for m, p in arms for seed in ((0,) if m == "naive" else (0, 1, 2))]
    arms += [("unguided", "none")]
    scales = [
        tradeoff(m, p, scale, seed)
        for m, p in arms
        for scale in ((0.0,) if m == "unguided" else (0.5, 1.0, 3.0, 6.0, 10.0))
        for seed in (100, 101)
    ]
    curves = [noise_accuracy(*arm) for arm in trained]
    return [row(*arm) for arm in arms] + curves + scales + [grid(*arm) for arm in arms]


def info(name: str, axes: dict[str, str], metrics: tuple[str, ...] = ()) -> Record:
    """A record of kind ``sweep``."""
    shown = metrics or ("accuracy", "fid", "fid_infinity")
    figure = "lines" if set(axes.values()) - {"category"} else "points"
    return {
        "kind": "sweep", "sweep": name, "setting": "fashion", "budget": "test",
        "key": f"sweep-{name}", "title": f"The {name}", "description": "What it is about.",
        "axes": list(axes), "scales": axes, "metrics": list(shown), "headline": True,
        "figure": figure if "accuracy" in shown else "none",
    }  # fmt: skip


def comparison(ours: Record, reference: Record, gain: float, p: float) -> Record:
    """A record of kind ``comparison``."""
    accuracy = {"value": gain, "low": gain - 0.02, "high": gain + 0.02, "p": p / 2}
    fid = {"value": -0.5, "low": -1.0, "high": 0.1, "p": 0.125, "p_corrected": 0.25}
    named = {name: ours[name] for name in ("sweep", "setting", "budget", "method", "predictor")}
    return named | {
        "kind": "comparison", "key": f"versus-{ours['key']}", "row": ours["key"],
        "reference": reference["key"], "comparisons": 2,
        "differences": {"accuracy": accuracy | {"p_corrected": p}, "fid": fid},
    }  # fmt: skip


SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)
SCORES = {
    "single": (0.64, 0.82, 0.89, 0.86, 0.72),
    "multi-experts": (0.69, 0.85, 0.91, 0.93, 0.92),
    "ppap": (0.70, 0.86, 0.92, 0.94, 0.93),
}
"""By arm, at the scales."""


def curve(method: str, predictor: str = "resnet", units: int = 8, **changes: Any) -> Record:
    """A record of kind ``curve``, each unit of which is a little better or worse throughout."""
    scales = (0.0,) if method == "unguided" else SCALES
    scores = (0.1,) if method == "unguided" else SCORES[method]
    points = [
        {
            "unit": unit, "scale": scale, "samples": 300,
            "score": score + 0.002 * ((5 * unit + len(method)) % 8 - 3.5),
            "pixel_fid": (1.8 if scale == 0 else 0.5 + 1.1 * scale**0.9) * (1 + 0.004 * unit),
            "pixel_recall": 0.5, "pixel_precision": 0.7, "pixel_coverage": 0.6, "pixel_kid": 0.01,
            "fid": 8.0 - 4 * score, "kid": 0.2, "precision": 0.7, "recall": 0.4,
            "saturation": 0.01 * (1 + scale),
            "saturation_bright": 0.005 * (1 + scale),
            "belief": None if method == "unguided" else min(1.0, score + 0.01 * scale),
        }
        for unit in range(units)
        for scale, score in zip(scales, scores, strict=True)
    ]  # fmt: skip
    record = _common("curve", method, predictor) | {
        "sweep": "claims", "axes": {}, "reference": False, "adapter": "full",
        "experts": {"unguided": 0, "single": 1}.get(method, 5),
        "supervision": "data-free" if method == "ppap" else "labelled",
        "sampler": "dpm8", "trained_steps": 2000, "units": list(range(units)),
        "metric": "accuracy", "higher_is_better": True, "unbounded": False, "points": points,
        "provenance": copy.deepcopy(PROVENANCE),
    }  # fmt: skip
    return record | changes


def claim(name: str = "experts beat one network", **changes: Any) -> Record:
    """A record of kind ``claim``: five labelled experts against one labelled network."""
    record = _common("claim", name, changes.pop("predictor", "resnet")) | {
        "sweep": "claims",
        "statement": "At the same distance five experts are more accurate than one network.",
        "source": "the paper, section 4", "ours": "multi-experts", "theirs": "single",
        "family": "experts", "quantity": "score_at_matched_distance", "expected": "greater",
        "margin": 0.01,
    }  # fmt: skip
    return record | changes


def failure(label: str, resolved: bool = False) -> Record:
    """A record of kind ``failure``."""
    return {
        "kind": "failure", "sweep": "methods", "setting": "fashion", "budget": "test",
        "key": f"failure-{label}", "label": label, "reason": "MemoryError: <b>too big</b>",
        "needed_by": ["row ppap"], "resolved": resolved,
    }  # fmt: skip


def write_folder(folder: Path, records: list[Record]) -> Path:
    """Write the records, and random images for their grids, as the harness does."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    draw = np.random.default_rng(0)
    names = [record["array"] for record in records if record["kind"] == "grid"]
    arrays = {name: draw.integers(0, 256, (10, 6, 32, 32), dtype=np.uint8) for name in names}
    if arrays:
        np.savez(folder / "grids.npz", **arrays)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder that holds a whole sweep and no outputs yet."""
    return write_folder(tmp_path / "fashion-test", sweep())


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder with its outputs, built once: for reading only."""
    folder = write_folder(tmp_path_factory.mktemp("built") / "fashion-test", sweep())
    build(folder)
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A results folder with one record of every kind that has outputs, and no outputs yet."""
    records = [
        row("ppap", "vit"),
        noise_accuracy("ppap", "vit", 0),
        tradeoff("ppap", "vit", 1.0),
        grid("ppap", "vit"),
    ]
    return write_folder(tmp_path / "fashion-test", records)


def _common(kind: str, method: str, predictor: str, *more: object) -> Record:
    key = "-".join(map(str, (kind, method, predictor, *more)))
    names = {"kind": kind, "sweep": "methods", "setting": "fashion", "budget": "test", "key": key}
    return names | {"method": method, "predictor": predictor}
