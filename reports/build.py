"""Results folders in, their tables, figures and pages out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reports.claim_tables import (
    arms_csv,
    arms_legend,
    arms_table,
    claims_csv,
    claims_legend,
    claims_table,
)
from reports.drawings import Drawing, Report
from reports.findings import claim_markdown
from reports.kernels import Sheet, sheets
from reports.latex import latex_table
from reports.page import MAX_BYTES, overview, page
from reports.published import published
from reports.records import RECORDS_FILE, REHEARSAL, RecordError, Records
from reports.tables import Table, csv_table, headline, legend, markdown_table

__all__ = [
    "PAGE",
    "RESULTS",
    "build",
    "build_all",
    "build_kernels",
    "build_page",
    "results_folders",
]

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "index.html"
KERNELS = "kernels"
"""Beside the folders of sweeps."""


def build(folder: Path) -> list[Path]:
    """Write everything the folder's records allow: tables, figures, and the page that shows them.

    A page that would be too large goes without the samples.

    Args:
        folder: holds ``records.jsonl`` and, where grids are recorded, ``grids.npz``.

    Returns:
        The files written, ``index.html`` last. A kind of record that is absent leaves its
        outputs unwritten.

    Raises:
        RecordError: if the records are missing or malformed; nothing is written then.
    """
    return _write(Report.read(folder))


def build_all(folders: Sequence[Path], target: Path) -> list[Path]:
    """Write the outputs of several folders, and one page that shows them all.

    Args:
        folders: in the order in which the page shows them.
        target: the page.

    Returns:
        The files written, the page last.

    Raises:
        RecordError: if any records are missing or malformed; nothing is written then.
    """
    reports = [Report.read(folder) for folder in folders]
    written = [path for report in reports for path in _write(report)]
    target.write_bytes(_page(reports))
    return [*written, target]


def build_page(folders: Sequence[Path], target: Path = PAGE) -> list[Path]:
    """The page of several folders; of several settings it links to a page for each, beside it.

    Those of the default budget are shown first.

    Args:
        folders: of results.
        target: the page.

    Returns:
        The files written, the page last.

    Raises:
        RecordError: if records are malformed.
    """
    ordered = sorted(folders, key=lambda path: (not path.name.endswith("-default"), path.name))
    tables = sheets(ordered[0].parent / KERNELS)
    by_setting: dict[str, list[Report]] = {}
    for folder in ordered:
        report = Report.read(folder)
        by_setting.setdefault(report.folder.setting, []).append(report)
    every = [report for reports in by_setting.values() for report in reports]
    if len(by_setting) == 1:
        target.write_bytes(_page(every, tables))
        return [target]
    pages = {name: f"{target.stem}-{_safe(name)}.html" for name in by_setting}
    for name, reports in by_setting.items():
        target.with_name(pages[name]).write_bytes(_page(reports, home=target.name))
    target.write_text(overview(every, tables, pages), encoding="utf-8")
    return [*(target.with_name(file) for file in pages.values()), target]


def _safe(name: str) -> str:
    """Of a file."""
    return re.sub(r"[^\w.-]", "-", name)


def build_kernels(folder: Path = RESULTS / KERNELS) -> list[Path]:
    """Markdown of what is known of kernels and speed; a file per table.

    Raises:
        RecordError: if a file there is malformed.
    """
    written = []
    for sheet in sheets(folder):
        path = folder / f"{sheet.name}.md"
        path.write_text(sheet.markdown(), encoding="utf-8")
        written.append(path)
    return written


def results_folders(root: Path = RESULTS) -> list[Path]:
    """Every folder below ``root`` with records to report on, those of rehearsals aside.

    Raises:
        RecordError: if there is none.
    """
    found = sorted(path.parent for path in root.rglob(RECORDS_FILE))
    folders = [folder for folder in found if not folder.name.endswith(REHEARSAL)]
    if not folders:
        raise RecordError(f"no folder below {root} has {RECORDS_FILE}", "run a sweep first")
    return folders


def _write(report: Report) -> list[Path]:
    """Tables and figures first: a page that cannot be made costs none of them."""
    outputs = _outputs(report)
    for name, content in outputs.items():
        (report.folder.path / name).write_bytes(content)
    (report.folder.path / "index.html").write_bytes(_page([report]))
    return [report.folder.path / name for name in (*outputs, "index.html")]


def _page(
    reports: Sequence[Report], tables: Sequence[Sheet] = (), home: str | None = None
) -> bytes:
    """With the samples where they are not too much; however large, what was run is shown."""
    content = page(reports, tables, home=home).encode()
    if len(content) > MAX_BYTES:
        content = page(reports, tables, samples=False, home=home).encode()
    return content


def _outputs(report: Report) -> dict[str, bytes]:
    outputs: dict[str, bytes] = {}
    for records, drawings in zip(report.folder.sweeps, report.drawings, strict=True):
        if not records.rows.empty:
            caption = f"{records.info.title}. {headline(records)}"
            outputs[f"{records.sweep}.csv"] = csv_table(records).encode()
            outputs[f"{records.sweep}.tex"] = latex_table(
                Table.of(records), caption, records.sweep
            ).encode()
        outputs |= _claims(records)
        for drawing in drawings:
            outputs[f"{drawing.name}.png"] = drawing.png
            if not drawing.name.endswith("-samples"):  # pixels gain nothing from vectors
                outputs[f"{drawing.name}.svg"] = drawing.svg
        outputs[f"{records.sweep}.md"] = _markdown(report, records, drawings).encode()
    return outputs


def _claims(records: Records) -> dict[str, bytes]:
    """Contrasts and curves as CSV and for LaTeX."""
    outputs: dict[str, bytes] = {}
    whose = f"setting {records.setting}, budget {records.budget}"
    for name, found, csv, table in (
        ("contrasts", records.findings, claims_csv, claims_table),
        ("curves", records.arms, arms_csv, arms_table),
    ):
        if found:
            path = f"{records.sweep}-{name}"
            outputs[f"{path}.csv"] = csv(found).encode()
            caption = f"{records.info.title}: {name}, {whose}."
            outputs[f"{path}.tex"] = latex_table(table(found), caption, path).encode()
    return outputs


def _claims_markdown(records: Records) -> list[str]:
    parts = []
    if records.findings:
        parts += [claim_markdown(records.findings)]
        parts += [markdown_table(claims_table(records.findings)), _list(claims_legend())]
    if records.arms:
        parts += [markdown_table(arms_table(records.arms)), _list(arms_legend(records.arms))]
    return parts


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _markdown(report: Report, records: Records, drawings: Sequence[Drawing]) -> str:
    parts = [f"# {records.info.title}"]
    if records.info.description:
        parts.append(records.info.description)
    parts.append(headline(records))
    if not records.rows.empty:
        parts += [markdown_table(Table.of(records)), _list(legend(records))]
    parts += _claims_markdown(records)
    for drawing in drawings:
        parts += [f"![{drawing.name}]({drawing.name}.png)", drawing.caption]
    near = [f for f in published() if records.setting.split("-")[0] in f.settings]
    if near and not records.rows.empty:
        parts.append("Published figures, not measured here:")
        lines = [
            f"- {f.method}, {f.metric}: {f.shown} ({f.setting}). [{f.source}]({f.url}); {f.note}."
            for f in near
        ]
        parts.append("\n".join(lines))
    if report.folder.failures:
        parts.append("Failed and therefore missing:")
        parts.append("\n".join(f"- {f.label}: {f.reason}" for f in report.folder.failures))
    return "\n\n".join(parts) + "\n"
