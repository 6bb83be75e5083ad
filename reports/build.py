"""One results folder in, its tables, figures and page out."""

from __future__ import annotations

from pathlib import Path

from reports.figures import noise_accuracy_figure, png, samples_figure, tradeoff_figure
from reports.records import RECORDS_FILE, RecordError, Records
from reports.tables import csv_table, headline, markdown_table

__all__ = ["RESULTS", "build", "results_folders"]

RESULTS = Path(__file__).parent / "results"

CAPTIONS = {
    "noise_accuracy.png": "Accuracy of each model on noisy real test images against timestep: mean "
    "over seeds, band from the lowest to the highest seed; vertical lines bound the five experts' "
    "ranges.",
    "tradeoff.png": "Guided accuracy against FID; each point a guidance scale, averaged over the "
    "scale-selection seeds; the scale used in the table is ringed.",
    "samples.png": "Samples, a row per class; the same column is the same seed in every block.",
}

LEGEND = """\
- Brackets: 95 % bootstrap interval over seeds and samples.
- ↑ higher is better, ↓ lower is better; bold: the best guided row of its predictor.
- supervision: what the experts were trained on; data-free: generated images and the
  predictor's own outputs, no data set.
- experts: how many share the 1000 timesteps; trained share: parameters trained per expert, as a
  share of the predictor's.
- scale: of the guidance gradient; seeds, samples: how many, samples over all seeds.
- accuracy: share of samples an independent classifier gives the class they were guided to.
- IS: Inception score; precision, recall: improved precision and recall; all on the features FID
  is taken on.
- images/s, peak MiB: speed and peak memory of guided sampling on the hardware above."""


def build(folder: Path) -> list[Path]:
    """Write everything the folder's records allow: table, figures and the page that shows them.

    Args:
        folder: holds ``records.jsonl`` and, where grids are recorded, ``grids.npz``.

    Returns:
        The files written, ``methods.md`` last. A kind of record that is absent leaves its
        outputs unwritten and out of the page.

    Raises:
        RecordError: if the records are missing or malformed; nothing is written then.
    """
    records = Records.read(folder)
    outputs: dict[str, bytes] = {}
    if not records.rows.empty:
        outputs["methods.csv"] = csv_table(records).encode()
    if not records.noise_accuracy.empty:
        outputs["noise_accuracy.png"] = png(noise_accuracy_figure(records))
    if not records.tradeoff.empty:
        outputs["tradeoff.png"] = png(tradeoff_figure(records))
    if records.grids:
        outputs["samples.png"] = png(samples_figure(records))
    outputs["methods.md"] = _page(records, outputs).encode()
    for name, content in outputs.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in outputs]


def results_folders(root: Path = RESULTS) -> list[Path]:
    """Every folder below ``root`` with records to report on.

    Raises:
        RecordError: if there is none.
    """
    folders = sorted(path.parent for path in root.rglob(RECORDS_FILE))
    if not folders:
        raise RecordError(f"no folder below {root} has {RECORDS_FILE}", "run a sweep first")
    return folders


def _page(records: Records, outputs: dict[str, bytes]) -> str:
    parts = ["# Methods of guidance compared", headline(records)]
    if not records.rows.empty:
        parts += [markdown_table(records), LEGEND]
    for name, caption in CAPTIONS.items():
        if name in outputs:
            parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})", caption]
    return "\n\n".join(parts) + "\n"
