"""How a page opens: every claim in a sentence, its verdict, and the way to its test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from reports.claim_tables import difference_cell, evidence
from reports.claims import FEWEST, VERDICTS, Finding
from reports.drawings import Drawing, Report
from reports.html import anchor, figure
from reports.records import Folder, Records

__all__ = ["claim_markdown", "findings"]

INTRODUCTION = (
    "Each claim is a sentence that can be true or false, and the test of one contrast says which. "
    f"It is open where the test does not say, or fewer than {FEWEST} units were measured."
)


def findings(reports: Sequence[Report], pages: Mapping[str, str] | None = None) -> str:
    """The section of all folders' claims; empty where there are none.

    Args:
        reports: in the order shown.
        pages: file of each setting's page, where tests are on other pages than this section.
    """
    pages = pages or {}
    parts = [
        _sweep(report.folder, records, drawings, escape(pages.get(report.folder.setting, "")))
        for report in reports
        for records, drawings in zip(report.folder.sweeps, report.drawings, strict=True)
        if records.findings
    ]
    if not parts:
        return ""
    together = [f for report in reports for sweep in report.folder.sweeps for f in sweep.findings]
    counts = Counter(finding.verdict for finding in together)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    return "\n".join(
        [
            '<section class="findings" id="findings">',
            "<h2>Findings</h2>",
            f"<p>{INTRODUCTION} Of {len(together)}: {told}.</p>",
            *_glances(reports, pages),
            *parts,
            "</section>",
        ]
    )


def _glances(reports: Sequence[Report], pages: Mapping[str, str]) -> list[str]:
    """Of each sweep with claims in several places a table: claims down, places across."""
    places: dict[str, list[tuple[Folder, str, dict[str, Finding]]]] = {}
    for folder in (report.folder for report in reports):
        for records in folder.sweeps:
            found: dict[str, dict[str, Finding]] = {}
            for finding in records.findings:
                found.setdefault(finding.claim.predictor, {})[finding.claim.name] = finding
            across = places.setdefault(records.sweep, [])
            across += [(folder, predictor, claims) for predictor, claims in found.items()]
    return [_glance(sweep, across, pages) for sweep, across in places.items() if len(across) > 1]


def _glance(
    sweep: str,
    across: Sequence[tuple[Folder, str, Mapping[str, Finding]]],
    pages: Mapping[str, str],
) -> str:
    heads = [
        f"{escape(folder.setting)}<br><small>{escape(folder.budget).replace('+', '<wbr>+')}</small>"
        f"<br>{escape(predictor)}"
        for folder, predictor, _ in across
    ]
    names = dict.fromkeys(name for _, _, claims in across for name in claims)
    lines = []
    for name in names:
        found = [(folder, claims.get(name)) for folder, _, claims in across]
        statement = next(one.claim.statement for _, one in found if one is not None)
        cells = "".join(f"<td>{_glimpse(*one, pages)}</td>" for one in found)
        title = escape(statement, quote=True)
        lines.append(f'<tr><th scope="row" title="{title}">{escape(name)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    title = escape(f"{sweep} at a glance", quote=True)
    return (
        f"<h3>{title}</h3>"
        "<p>Ours less theirs, mean over units with its 95 % interval; of errors, less is better. "
        "Point at a claim for its sentence; a verdict leads to its test.</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f'<table class="glance"><thead><tr><th scope="col">claim</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _glimpse(folder: Folder, finding: Finding | None, pages: Mapping[str, str]) -> str:
    """A verdict that leads to its test, and the difference below; nothing where there is none."""
    if finding is None:
        return ""
    file = escape(pages.get(folder.setting, ""))
    figures = ""
    if finding.test is not None:
        cell = difference_cell(finding)
        figures = f"<br>{cell.text} <small>{cell.interval}</small>"
    return (
        f'<a class="{finding.verdict}" href="{file}#{anchor(folder, finding.claim.key)}">'
        f"{finding.verdict}</a>{figures}"
    )


def claim_markdown(claims: Sequence[Finding]) -> str:
    """The same as a list in Markdown."""
    return "\n".join(
        f"- **{finding.verdict}** ({finding.claim.predictor}): {finding.claim.statement} "
        f"*{evidence(finding)}.*"
        for finding in claims
    )


def _sweep(folder: Folder, records: Records, drawings: Sequence[Drawing], file: str) -> str:
    section = anchor(folder, records.sweep)
    title = escape(f"{folder.setting}, budget {folder.budget}: {records.info.title}")
    if records.rehearsed:
        title += ": a rehearsal on seeded weights, no result"
    together: dict[tuple[str, str], list[Finding]] = {}
    for finding in records.findings:
        claim = finding.claim
        together.setdefault((claim.name, claim.statement), []).append(finding)
    items = [
        f"<li><p>{escape(statement)}</p>"
        f"{''.join(_verdict(folder, section, one, file) for one in claims)}</li>"
        for (_, statement), claims in together.items()
    ]
    forest = [figure(d) for d in drawings if d.name == f"{records.sweep}-contrasts"]
    return (
        f"<h3>{title}</h3>"
        f'<div class="beside"><ul class="claims">{"".join(items)}</ul>{"".join(forest)}</div>'
    )


def _verdict(folder: Folder, section: str, finding: Finding, file: str) -> str:
    claim, place = finding.claim, f"{file}#"
    return (
        f'<p class="verdict"><b class="{finding.verdict}">{finding.verdict}</b> '
        f"<strong>{escape(claim.predictor)}</strong> {escape(evidence(finding))}. "
        f'<span class="links"><a href="{place}{anchor(folder, claim.key)}">test</a> '
        f'<a href="{place}{section}-contrasts">table</a> '
        f'<a href="{place}{section}-curves">curves</a>'
        "</span></p>"
    )
