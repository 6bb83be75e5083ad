"""The page is whole in itself, safe to open, and leads from every number to its source."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports.__main__ import main
from reports.build import build, build_page
from reports.drawings import Report
from reports.kernels import Sheet
from reports.page import page as whole_page
from reports.published import published
from reports.records import read_folder
from tests.reports.conftest import (
    PROVENANCE,
    claim,
    comparison,
    curve,
    failure,
    grid,
    info,
    row,
    sweep,
    write_folder,
)

SOURCE = """
[[source]]
text = "x"
url = "https://example.org"
settings = []
setting = "y"
note = "z"
figures = [{method = "a", metric = "FID", value = 3, uncertainty = 1}]
"""


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def attributes(self, tag: str, name: str) -> list[str]:
        return [a[name] or "" for t, a in self.found if t == tag and name in a]


def elements(page: str) -> Elements:
    parser = Elements()
    parser.feed(page)
    return parser


def embedded(page: str) -> dict[str, dict[str, object]]:
    found = re.search(
        r'<script type="application/json" id="records">(.*?)</script>', page, re.DOTALL
    )
    assert found is not None
    records: dict[str, dict[str, object]] = json.loads(found[1])
    return records


@pytest.fixture
def page(built: Path) -> str:
    return (built / "index.html").read_text()


def test_nothing_is_fetched_from_elsewhere(page: str) -> None:
    found = elements(page)
    assert all(source.startswith("data:") for source in found.attributes("img", "src"))
    assert not found.attributes("script", "src")
    assert not found.attributes("link", "href")
    # Links to sources are followed by a person, not fetched by the page.
    outside = {a for a in found.attributes("a", "href") if not a.startswith("#")}
    assert outside == {figure.url for figure in published()}
    assert "@import" not in page
    assert "url(" not in page.split("</style>", maxsplit=1)[0]
    assert len(page.encode()) < 5_000_000


def test_every_row_leads_to_its_record(page: str) -> None:
    keys = elements(page).attributes("tr", "data-key")
    records = embedded(page)
    assert len(keys) == 9
    assert set(keys) == set(records)
    for key, record in records.items():
        assert key == f"fashion-test/{record['key']}"
        assert {"commit", "packages", "hardware"} <= set(record["provenance"])  # type: ignore[call-overload]


def test_every_table_can_be_sorted_and_every_picture_is_described(page: str) -> None:
    found = elements(page)
    headers = [a for tag, a in found.found if tag == "th" and "aria-sort" in a]
    assert len(headers) == found.attributes("th", "scope").count("col") == 21
    assert all(found.attributes("img", "alt"))
    assert len(found.attributes("img", "alt")) == len(found.attributes("img", "src"))
    targets = {a["id"] for _, a in found.found if "id" in a}
    inside = [a for a in found.attributes("a", "href") if a.startswith("#")]
    assert {target[1:] for target in inside} <= targets


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    lines = [row("ppap", "resnet") | {"method": evil}, row("single", "resnet")]
    lines += [info("methods", {}) | {"title": evil, "description": evil}, failure(evil)]
    lines += [grid("ppap", "resnet") | {"method": evil}]
    folder = write_folder(tmp_path, lines)
    build(folder)
    found = elements((folder / "index.html").read_text())
    assert len([tag for tag, _ in found.found if tag == "script"]) == 2
    assert not [a for _, a in found.found if "onerror" in a]
    assert all(source.startswith("data:") for source in found.attributes("img", "src"))


def test_failures_are_named_until_they_are_mended(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [row("ppap", "vit"), failure("gone"), failure("broken")])
    with (folder / "records.jsonl").open("a") as file:
        file.write(json.dumps(failure("gone", resolved=True)) + "\n")
    assert [f.label for f in read_folder(folder).failures] == ["broken"]
    build(folder)
    for name in ("index.html", "methods.md"):
        text = (folder / name).read_text()
        assert "broken" in text
        assert "gone" not in text
    assert "&lt;b&gt;too big" in (folder / "index.html").read_text()


def test_folders_and_sweeps_share_a_page(tmp_path: Path) -> None:
    rank = row("ppap", "resnet") | {"sweep": "rank", "key": "r", "axes": {"rank": 4}}
    full = write_folder(tmp_path / "fashion-full", sweep())
    small = write_folder(
        tmp_path / "fashion-default",
        [
            {**record, "budget": "default"}
            for record in (
                info("methods", {}),
                row("ppap", "vit"),
                row("single", "vit"),
                comparison(row("ppap", "vit"), row("single", "vit"), 0.1, 0.01),
                info("rank", {"rank": "log"}),
                rank,
            )
        ],
    )
    target = tmp_path / "index.html"
    assert build_page([full, small], target) == [target]
    page = target.read_text()
    assert page.index("budget default") < page.index("budget test")
    assert len(embedded(page)) == 12
    assert "The rank" in page


def test_several_settings_have_a_page_each_to_which_the_first_one_leads(tmp_path: Path) -> None:
    folders = []
    claims = [info("claims", {}), curve("single"), curve("multi-experts"), claim()]
    for setting in ("fashion", "scenes & more"):
        own = [record | {"setting": setting} for record in (*sweep(), *claims)]
        folders.append(write_folder(tmp_path / f"{setting}-default", own))
    files = build_page(folders, tmp_path / "index.html")
    names = ["index-fashion.html", "index-scenes---more.html", "index.html"]
    assert [path.name for path in files] == names
    places = {
        path.name: {a["id"] for _, a in elements(path.read_text()).found if "id" in a}
        for path in files
    }
    first = files[-1].read_text()
    assert "samples of ppap" not in first
    assert not embedded(first)
    links = [link for link in elements(first).attributes("a", "href") if "://" not in link]
    for link in links:
        file, _, place = link.partition("#")
        assert not place or place in places[file or "index.html"], link
    assert {link.partition("#")[0] for link in links} == {"", *names[:-1]}
    for path in files[:-1]:
        page = path.read_text()
        assert "samples of ppap" in page
        assert '<a href="index.html">all settings</a>' in page


def test_the_page_says_on_what_its_results_were_seen(tmp_path: Path) -> None:
    old = PROVENANCE["hardware"]
    facts = {"instruction_set": "AVX2, oneDNN AVX2", "threads": 2, "limits": {}, "cpu": "Other"}
    machines = {"machines": [old, old | facts]}
    build(
        write_folder(
            tmp_path, [row("naive", "vit"), row("ppap", "vit", provenance=PROVENANCE | machines)]
        )
    )
    told = (
        "Example CPU (2 cores), 8 GiB, torch 2.0; "
        "Other (2 cores), AVX2, oneDNN AVX2, 2 threads per worker, 8 GiB, torch 2.0."
    )
    assert f"Seen on {told}" in (tmp_path / "index.html").read_text()
    assert "8 GiB and Other (2 cores), AVX2" in (tmp_path / "methods.md").read_text()


def test_published_figures_stand_apart_with_their_sources(page: str) -> None:
    measured, _, apart = page.partition('id="published"')
    for figure in published():
        assert f">{figure.source}</a>" in apart
        assert f">{figure.shown}<" in apart
        assert f">{figure.method}<" not in measured
    assert "not measured here" in apart
    assert "1,459,632" in apart
    assert "54.5 ± 1" in apart


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[source]]\ntext = "x"', "no url"),
        (SOURCE.replace("https", "http"), "not https"),
        (SOURCE.replace(", uncertainty = 1", ""), "no uncertainty"),
    ],
)
def test_a_published_figure_without_source_is_refused(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "published.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        published(path)


def test_what_was_not_measured_does_not_stop_the_script(tmp_path: Path) -> None:
    """Browsers read no NaN in JSON, and no table could be sorted for it."""
    folder = write_folder(tmp_path, [row("ppap", "vit", fid_low=float("nan"))])
    build(folder)
    (record,) = embedded((folder / "index.html").read_text()).values()
    assert record["fid_low"] is None


def test_the_records_cannot_end_or_hide_their_element(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [row("ppap", "vit") | {"method": "<!--<script></script>"}])
    build(folder)
    (element,) = re.findall(r'id="records">(.*)</script>', (folder / "index.html").read_text())
    assert "<" not in element
    assert json.loads(element)["fashion-test/row-ppap-vit"]["method"] == "<!--<script></script>"


def test_a_row_tells_its_interval_and_its_difference(tmp_path: Path) -> None:
    ours, reference = row("ppap", "vit"), row("single", "vit")
    folder = write_folder(tmp_path, [ours, reference, comparison(ours, reference, 0.1, 0.01)])
    build(folder)
    records = embedded((folder / "index.html").read_text())
    record: dict[str, Any] = records["fashion-test/row-ppap-vit"]
    assert record["accuracy_low"] < record["accuracy"] < record["accuracy_high"]
    found = {part["metric"]: part for part in record["differences"]}
    assert found["accuracy"]["value"] == 0.1
    assert found["accuracy"]["p_corrected"] == 0.01
    assert found["accuracy"]["reference"] == reference["key"]
    assert records["fashion-test/row-single-vit"]["differences"] == []


def test_folders_that_are_named_share_the_page_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_folder(tmp_path / "small", [row("ppap", "vit")])
    large = write_folder(tmp_path / "large", [row("single", "vit", budget="full")])
    target = tmp_path / "both.html"
    assert main(["build", str(small), str(large), "--page", str(target)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(target)
    assert set(embedded(target.read_text())) == {
        "fashion-test/row-ppap-vit",
        "fashion-full/row-single-vit",
    }


def test_samples_are_large_enough_to_look_at(page: str) -> None:
    found = elements(page)
    pictures = [a for tag, a in found.found if tag == "img" and "class" not in a]
    assert len(pictures) == 9
    assert all(int(picture["width"] or 0) >= 390 for picture in pictures)


def test_a_trajectory_is_shown_step_by_step(tmp_path: Path) -> None:
    strip = {
        name: grid("ppap", "vit")[name] for name in ("sweep", "setting", "budget", "predictor")
    } | {
        "kind": "strip", "key": "strip", "method": "ppap", "array": "path", "labels": ["noise"],
        "columns": ["t = 900", "t = 100", "sample"], "experts": [4, 0, None],
    }  # fmt: skip
    write_folder(tmp_path, [strip])
    steps = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "grids.npz", path=steps)
    build(tmp_path)
    page = (tmp_path / "index.html").read_text()
    shown = page[page.index('class="strip"') :]
    assert [a["alt"] for tag, a in elements(shown).found if tag == "img"] == [
        "t = 900 expert 4", "t = 100 expert 0", "sample",
    ]  # fmt: skip
    assert "<figure>" not in page, "a white plate on a dark page"
    assert (tmp_path / "methods-trajectory.png").exists()


def test_drawings_are_dark_on_a_dark_page(page: str) -> None:
    style = page[: page.index("</style>")]
    rule = "figure img.plot { filter: invert(.88) hue-rotate(180deg); }"
    assert style.count(rule) == 2, "as the system asks, and as the reader does"
    assert all(kind and "plot" in kind for kind in elements(page).attributes("img", "class"))


def test_a_long_table_of_speed_waits_to_be_unfolded(tmp_path: Path) -> None:
    line = (("x", "x"), ("1", 1))
    sheets = [
        Sheet("audit", "Audit", "", ("a", "b"), (True, False), (line,) * 61),
        Sheet("bench", "Bench", "", ("a", "b"), (True, False), (line,) * 60),
    ]
    shown = whole_page([Report.read(write_folder(tmp_path, [row("ppap", "vit")]))], sheets)
    audit, _, bench = shown[shown.index('id="audit"') :].partition('id="bench"')
    assert "<summary>All 61 rows</summary>" in audit
    assert "<details>" not in bench.split('id="published"')[0]
