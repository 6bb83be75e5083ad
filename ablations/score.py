"""``python -m ablations score``: the figures of a row, for images that other code has made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablations import preflight
from ablations.cells.given import GIVEN, Given
from ablations.cells.intervals import RowFigures
from ablations.cells.results import About, Result, Row
from ablations.cells.scores import Score
from ablations.cells.setup import Setup
from ablations.errors import UserError
from ablations.machine import engine, records
from ablations.machine.pools import put
from ablations.machine.store import Artifact
from ablations.runs import OUTPUT, open_store, report, tell_failures
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.settings.given import read_given
from ablations.settings.plugins import load_plugins
from ablations.sweeps import Lab
from ablations.sweeps.banks import SAMPLER
from ablations.sweeps.recipes import QUALITY
from ablations.sweeps.registry import Sweep
from reports.metrics import METRICS

__all__ = ["require_free", "row_name", "score"]

SWEEP, BUDGET = "scored", "given"
RESAMPLES = 200
"""Bootstrap replicates of FID, as every budget but the smallest has."""


def score(
    path: Path,
    setting_name: str = "fashion",
    *,
    name: str | None = None,
    in_order: bool = False,
    plugin: tuple[str, ...] = (),
    store_url: str | None = None,
    output: Path | None = None,
) -> int:
    """Judge images as the samples of a row are judged, tell the figures and keep their record.

    Args:
        path: of the images; see :func:`ablations.settings.given.read_given`.
        setting_name: whose judges and reference statistics are used.
        name: of the row; by default that of the folder, or of the file without ``.npz``.
        in_order: whether image i is of the setting's i-th target, as in an unguided row.
        plugin: modules that may define the setting.
        store_url: of artifacts.
        output: results folder.

    Returns:
        The exit status.

    Raises:
        UserError: for images that cannot be judged, or whose targets are not known; or if the
            output has a row of that name already, of other images.
    """
    load_plugins(plugin)
    preflight.require_packages()
    setting, store = load_setting(setting_name), open_store(store_url)
    images, classes = read_given(path, setting)
    if (classes is None) != in_order or (classes is not None and set(setting.tasks) != {"class"}):
        raise UserError(
            f"{path} {'has no classes' if classes is None else 'has classes'}, and the targets of "
            f"{setting.name} are {', '.join(setting.tasks)}",
            "put pictures into folders named like classes, or labels into the .npz file; or add "
            "--in-order if image i is of the setting's i-th target, and has no class",
        )
    if len(images) < 10:
        raise UserError(f"{path} holds {len(images)} images", "give at least 10")
    folder = output or OUTPUT / f"{setting.name}-{BUDGET}"
    preflight.require_same_results(folder, setting.name, BUDGET)
    arrays = {"images": images} | ({} if classes is None else {"labels": classes})
    digest = hashlib.sha256()
    for key, array in arrays.items():
        digest.update(f"{key}{array.shape}".encode() + array.tobytes())
    setup = Setup.of(setting)
    given = Given(setup, SAMPLER, (), 0, len(images), digest.hexdigest()[:24], not in_order)
    name = name or row_name(path)
    require_free(folder, name, given)
    if not store.holds(given.key):
        put(store, given, Artifact({"scales": None}, arrays), 0.0)
    about = About(SWEEP, BUDGET, name)
    figures = RowFigures(setup, (Score(given),), RESAMPLES)
    row = Row(setup, about, (0,), GIVEN, figures)
    outcome = engine.run([row], store, 1)
    if not outcome.failures:
        lab = Lab(setting, BUDGETS[setting.budget], BUDGET, setting.predictors)
        sweep = Sweep(SWEEP, scored, {}, (*setting.metrics, *QUALITY[1:]), "none", False)
        report([sweep.record(lab)], [row], store, folder)
        _tell(store.get(row.key).meta["record"])
    return tell_failures(outcome)


def scored(lab: Lab) -> Iterator[Result]:
    """Images that other code has made.

    Judged by the same networks, against the same reference, as every sweep's rows.
    """
    del lab
    yield from ()


def row_name(path: Path) -> str:
    """What a row of these images is called by default: a folder's whole name, dots and all.

    Args:
        path: of the images; a file's name goes without ``.npz``.
    """
    whole = path.resolve().name
    return whole.removesuffix(".npz") if path.is_file() else whole


def require_free(folder: Path, name: str, given: Given) -> None:
    """Look whether a results folder can take a row of that name.

    Args:
        folder: of the results.
        name: of the row.
        given: its images; the same ones may be scored again.

    Raises:
        UserError: if the row of that name is there already, of other images.
    """
    for record in records.read(folder).values():
        if record["kind"] != "row" or (record["sweep"], record["method"]) != (SWEEP, name):
            continue
        known = record["provenance"]["configuration"]["samples"]
        if known["digest"] != given.digest:
            raise UserError(
                f"{folder} has a row {name} already, of other images, which this would replace",
                "give another name with --name, or another folder with --output",
            )


def _tell(record: Mapping[str, Any]) -> None:
    """The figures, a line each."""
    print(f"{record['method']}: {record['samples']} images of {record['setting']}")
    for name, metric in METRICS.items():
        if record.get(name) is not None:
            bounds = [record.get(f"{name}_{end}") for end in ("low", "high")]
            known = [f"{bound:{metric.spec}}" for bound in bounds if bound is not None]
            shown = f"{record[name]:{metric.spec}}"
            print(f"  {name}: {shown}" + f" [{', '.join(known)}]" * bool(known))
