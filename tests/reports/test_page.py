"""The page is whole in itself, safe to open, and leads from every number to its source."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from reports.build import build, build_page
from reports.published import published_table
from reports.records import read_folder
from tests.reports.conftest import (
    comparison,
    failure,
    grid,
    info,
    row,
    sweep,
    write_folder,
)


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
def page(folder: Path) -> str:
    build(folder)
    return (folder / "index.html").read_text()


def test_nothing_is_fetched_from_elsewhere(page: str) -> None:
    found = elements(page)
    assert all(source.startswith("data:") for source in found.attributes("img", "src"))
    assert not found.attributes("script", "src")
    assert not found.attributes("link", "href")
    assert all(target.startswith("#") for target in found.attributes("a", "href"))
    assert "@import" not in page
    assert "url(" not in page.split("</style>", maxsplit=1)[0]
    assert len(page.encode()) < 5_000_000


def test_every_row_leads_to_its_record(page: str, folder: Path) -> None:
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
    assert len(headers) == found.attributes("th", "scope").count("col") == 20
    assert all(found.attributes("img", "alt"))
    assert len(found.attributes("img", "alt")) == len(found.attributes("img", "src"))
    targets = {a["id"] for _, a in found.found if "id" in a}
    assert {target[1:] for target in found.attributes("a", "href")} <= targets


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
    trial = write_folder(tmp_path / "fashion-smoke", [row("naive", "vit")])
    assert build_page([full, trial, small], target) == target
    page = target.read_text()
    assert page.index("budget default") < page.index("budget test")
    assert len(embedded(page)) == 12
    assert "The rank" in page


def test_published_figures_stand_apart_with_their_sources(page: str) -> None:
    table = published_table()
    measured, _, published = page.partition('id="published"')
    for line in table.lines:
        assert line[-1].replace("&", "&amp;") in published
        assert f">{line[0]}<" not in measured
    assert "not measured here" in published


def test_a_published_figure_without_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "published.toml"
    path.write_text('[[figure]]\nmethod = "x"\nmetric = "FID"\nvalue = "3"\nsetting = "y"\n')
    with pytest.raises(ValueError, match="no source"):
        published_table(path)
