"""One results folder in, its tables, figures and page out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reports.drawings import drawings
from reports.page import MAX_BYTES, page
from reports.records import RECORDS_FILE, Folder, RecordError, Records, read_folder
from reports.tables import csv_table, headline, latex_table, legend, markdown_table

__all__ = ["PAGE", "RESULTS", "build", "build_page", "results_folders"]

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "index.html"
TRIALS = ("-smoke", "-custom")


def build(folder: Path) -> list[Path]:
    """Write everything the folder's records allow: tables, figures, and the page that shows them.

    Args:
        folder: holds ``records.jsonl`` and, where grids are recorded, ``grids.npz``.

    Returns:
        The files written, ``index.html`` last. A kind of record that is absent leaves its
        outputs unwritten.

    Raises:
        RecordError: if the records are missing or malformed; nothing is written then.
    """
    read = read_folder(folder)
    outputs = _outputs(read) | {"index.html": _page([read])}
    for name, content in outputs.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in outputs]


def build_page(folders: Sequence[Path], target: Path = PAGE) -> Path:
    """One page of several folders; those of the default budget are shown first.

    Args:
        folders: of results; trials, whose names end in ``-smoke`` or ``-custom``, are left out
            where there are others.
        target: the page.

    Raises:
        RecordError: if records are malformed, or the page would be too large.
    """
    worth = [path for path in folders if not path.name.endswith(TRIALS)] or list(folders)
    worth.sort(key=lambda path: (not path.name.endswith("-default"), path.name))
    target.write_bytes(_page([read_folder(folder) for folder in worth]))
    return target


def results_folders(root: Path = RESULTS) -> list[Path]:
    """Every folder below ``root`` with records to report on.

    Raises:
        RecordError: if there is none.
    """
    folders = sorted(path.parent for path in root.rglob(RECORDS_FILE))
    if not folders:
        raise RecordError(f"no folder below {root} has {RECORDS_FILE}", "run a sweep first")
    return folders


def _page(folders: Sequence[Folder]) -> bytes:
    content = page(folders).encode()
    if len(content) > MAX_BYTES:
        raise RecordError(f"the page has {len(content):,} bytes", "build fewer folders at a time")
    return content


def _outputs(folder: Folder) -> dict[str, bytes]:
    outputs: dict[str, bytes] = {}
    for records in folder.sweeps:
        if not records.rows.empty:
            outputs[f"{records.sweep}.csv"] = csv_table(records).encode()
            outputs[f"{records.sweep}.tex"] = latex_table(records).encode()
        for drawing in drawings(records):
            outputs[f"{drawing.name}.png"] = drawing.png()
            if not drawing.name.endswith("-samples"):  # pixels gain nothing from vectors
                outputs[f"{drawing.name}.svg"] = drawing.svg()
        outputs[f"{records.sweep}.md"] = _markdown(folder, records).encode()
    return outputs


def _markdown(folder: Folder, records: Records) -> str:
    parts = [f"# {records.info.title}"]
    if records.info.description:
        parts.append(records.info.description)
    parts.append(headline(records))
    if not records.rows.empty:
        parts += [markdown_table(records), "\n".join(f"- {line}" for line in legend(records))]
    for drawing in drawings(records):
        parts += [f"![{drawing.name}]({drawing.name}.png)", drawing.caption]
    if folder.failures:
        parts.append("Failed and therefore missing:")
        parts.append("\n".join(f"- {f.label}: {f.reason}" for f in folder.failures))
    return "\n\n".join(parts) + "\n"
