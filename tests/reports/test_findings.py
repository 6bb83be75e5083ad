"""Claims as tables, figures and the opening of a page: all say what the tests say."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from reports.build import build
from reports.claim_figures import LOOKS, curves_figure, forest_figure
from reports.claim_tables import (
    arms_csv,
    arms_legend,
    arms_table,
    claims_csv,
    claims_table,
    evidence,
)
from reports.records import Records
from reports.styles import styles
from reports.tables import Table
from tests.reports.conftest import SCALES, claim, curve, info, write_folder
from tests.reports.test_page import elements, embedded

ARMS = ("single", "multi-experts", "ppap")
CLAIMS = [
    claim(),
    claim(
        "as good",
        statement="Labels are not needed.",
        ours="ppap",
        theirs="multi-experts",
        expected="equivalent",
        margin=0.03,
    ),
    claim(
        "worse",
        statement="They are worse.",
        ours="ppap",
        expected="less",
        quantity="best_score",
        family="worse",
    ),
    claim("missing", theirs="naive", statement="Nobody knows.", quantity="area"),
    claim(
        "nearer",
        statement="They are nearer.",
        quantity="distance_at_matched_score",
        expected="less",
        margin=None,
    ),
]
NAMES = [f"claims-{kind}.{end}" for kind in ("contrasts", "curves") for end in ("csv", "tex")]
NAMES += [f"claims-{kind}.{end}" for kind in ("contrasts", "curves") for end in ("png", "svg")]
NAMES += ["claims.md", "index.html"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "fashion-test"
    arms = [curve("unguided", "none"), *(curve(name) for name in ARMS)]
    write_folder(folder, [info("claims", {}), *arms, *CLAIMS])
    assert [path.name for path in build(folder)] == NAMES
    return folder


@pytest.fixture(scope="module")
def records(built: Path) -> Records:
    return Records.read(built)


def columns(table: Table) -> dict[str, list[str]]:
    body = zip(*table.lines, strict=True)
    return {
        name: [f"{cell.text} {cell.interval}".strip() for cell in cells]
        for name, cells in zip(table.header, body, strict=True)
    }


def test_the_table_of_claims_says_what_was_tested(records: Records) -> None:
    found = columns(claims_table(records.findings))
    assert found["claim"] == ["experts beat one network", "as good", "worse", "missing", "nearer"]
    assert found["verdict"] == ["supported", "supported", "refuted", "open", "supported"]
    first = records.findings[0]
    assert first.test is not None
    low, high = first.test.low, first.test.high
    assert found["difference"][0] == f"{first.test.value:+.3f} [{low:+.3f}, {high:+.3f}]"
    assert found["ours"][0] == f"multi-experts ({first.means[0]:.3f})"
    assert found["difference"][3] == "n/a"
    assert found["why"][3] == "no curve of naive has been measured"
    assert found["compared"][4].startswith("distance at accuracy ")
    assert found["compared"][3] == "accuracy", "no comma before what is missing"
    assert found["margin"] == ["0.01", "0.03", "0.01", "0.01", ""]


def test_claims_are_sorted_by_the_p_that_is_shown(tmp_path: Path) -> None:
    """Of which a claim that is alone in its family may have the less by the greater p."""
    arms = [curve("single"), curve("ppap")]
    told = {"ours": "ppap", "theirs": "single", "expected": "equivalent", "quantity": "best_score"}
    claims = [
        claim("of a family", **told, margin=0.06, comparisons=50),
        claim("alone", **told, margin=0.0595, family="own"),
    ]
    findings = Records.read(write_folder(tmp_path, [*arms, *claims])).findings
    first, second = findings
    assert first.p < second.p == second.p_corrected < first.p_corrected
    table = claims_table(findings)
    of_family, alone = (line[table.header.index("p (Holm)")] for line in table.lines)
    assert (of_family.value, alone.value) == (first.p_corrected, second.p_corrected)


def test_the_csv_of_claims_has_every_figure_of_their_tests(built: Path, records: Records) -> None:
    text = (built / "claims-contrasts.csv").read_text()
    assert text == claims_csv(records.findings)
    for line, finding in zip(csv.DictReader(io.StringIO(text)), records.findings, strict=True):
        assert line["verdict"] == finding.verdict
        assert line["statement"] == finding.claim.statement
        assert float(line["p_corrected"]) == pytest.approx(finding.p_corrected, rel=1e-5)
        if finding.test is None:
            assert line["difference"] == line["t"] == ""
        else:
            for name, value in (("difference", finding.test.value), ("t", finding.test.t)):
                assert float(line[name]) == pytest.approx(value, rel=1e-5)


def test_the_table_of_curves_has_best_score_area_collapse_and_gap(records: Records) -> None:
    found = columns(arms_table(records.arms))
    assert found["method"] == ["unguided", *ARMS]
    assert found["scale"] == ["0", "4", "8", "8"]
    assert found["best score"][0].startswith("0.100 [")
    assert found["best score"][2].startswith("0.930 [")
    assert found["collapse"][0] == "n/a"
    assert found["collapse"][1].startswith("-0.170 [")
    assert found["gap"][0] == "n/a", "an arm that guides nothing believes nothing"
    assert found["gap"][1].startswith("+0.040 [")
    assert found["area"][0] == "n/a", "a point spans no range"
    assert all(text[0] == "0" for text in found["area"][1:])


def test_an_arm_whose_guide_moves_nothing_takes_no_other_arms_area(tmp_path: Path) -> None:
    idle = curve("single") | {"method": "control", "key": "idle"}
    for place, point in enumerate(idle["points"]):
        point["pixel_fid"] = 2.0 + 0.1 * point["unit"] + 0.001 * (place % len(SCALES))
    alone = [curve("single"), curve("ppap")]
    areas = []
    for place, arms in enumerate((alone, [*alone, idle])):
        folder = write_folder(tmp_path / str(place), arms)
        areas.append(columns(arms_table(Records.read(folder).arms))["area"])
    assert all(text[0] == "0" for text in areas[0])
    assert sorted(areas[1]) == sorted([*areas[0], "n/a"])


def test_an_unbounded_arm_is_marked(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [curve("ppap", unbounded=True)])
    assert columns(arms_table(Records.read(folder).arms))["scale"] == ["8 at the edge"]


def test_what_was_chosen_for_each_unit_is_told(tmp_path: Path) -> None:
    chosen = ["held back", *["calibrated"] * 7]
    folder = write_folder(tmp_path, [curve("ppap"), curve("single", chosen=chosen)])
    lines = arms_legend(Records.read(folder).arms)
    assert "single, resnet: of 8 units calibrated in 7, held back in 1." in lines
    assert sum(" units " in line and line.endswith("in 1.") for line in lines) == 1


def test_the_csv_of_curves_has_a_line_for_each_scale(records: Records) -> None:
    lines = list(csv.DictReader(io.StringIO(arms_csv(records.arms))))
    assert len(lines) == 1 + 5 * len(ARMS)
    assert [float(line["scale"]) for line in lines[1:6]] == list(SCALES)
    assert lines[0]["belief"] == ""
    single = records.arms[1].points
    at_two = single[single["scale"] == 2.0]
    assert float(lines[2]["score"]) == pytest.approx(at_two["score"].mean(), rel=1e-5)
    assert float(lines[2]["pixel_fid_low"]) < at_two["pixel_fid"].mean()
    assert (int(lines[2]["units"]), int(lines[2]["samples"])) == (8, 8 * 300)


def test_a_mean_over_units_of_which_one_was_not_measured_is_none(tmp_path: Path) -> None:
    record = curve("ppap")
    record["points"][2]["recall"] = None
    arms = Records.read(write_folder(tmp_path, [record])).arms
    lines = list(csv.DictReader(io.StringIO(arms_csv(arms))))
    assert [line["recall"] == "" for line in lines] == [False, False, True, False, False]


def test_evidence_is_a_line_that_can_stand_alone(records: Records) -> None:
    experts, good, _, missing, _ = map(evidence, records.findings)
    assert experts.startswith("multi-experts less single: +0.0")
    assert "8 units" in experts
    assert good.endswith("for equivalence; the difference is smaller than 0.03")
    assert missing == "no curve of naive has been measured"


def test_the_forest_draws_every_difference_in_its_verdicts_colour(records: Records) -> None:
    accuracy, distance = forest_figure(records.findings).axes
    assert "accuracy" in accuracy.get_xlabel()
    assert "distance" in distance.get_xlabel()
    tested = [f for f in records.findings if f.test and f.unit == "accuracy"]
    points = [line for line in accuracy.lines if line.get_marker() in ("o", "s", "D")]
    drawn = [(float(np.ravel(p.get_xdata())[0]), to_hex(p.get_color())) for p in points]
    expected = [(f.test.value, LOOKS[f.verdict][0].lower()) for f in tested if f.test]
    assert drawn == expected
    written = [text.get_text() for text in accuracy.texts]
    assert written.count("supported") == 2
    assert written.count("refuted") == written.count("open") == 1
    assert "no curve of naive has been measured" in written
    bars = [line for line in accuracy.lines if line.get_linewidth() == 9]
    assert len(bars) == len(tested), "no margin behind the words of a claim without a test"
    ends = [tuple(np.ravel(line.get_xdata())) for line in accuracy.lines]
    assert all((f.test.low, f.test.high) in ends for f in tested if f.test)


def test_the_forest_fits_a_telephone(records: Records) -> None:
    """390 pixels wide: nothing is scaled down, and no text is smaller than 9 pixels or cut."""
    figure = forest_figure(records.findings)
    assert figure.get_figwidth() * 96 <= 390
    figure.draw_without_rendering()
    wide, tall = figure.canvas.get_width_height()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = [text for text in axes.get_xticklabels() if low <= text.get_position()[0] <= high]
        for text in [*axes.texts, axes.xaxis.label, *ticks]:
            assert text.get_fontsize() * 96 / 72 > 9
            box = text.get_window_extent()
            assert box.x0 >= -2
            assert box.x1 <= wide + 2
            assert 0 <= box.y0 <= box.y1 <= tall


def test_differences_of_very_different_sizes_are_all_seen(tmp_path: Path) -> None:
    far = curve("unguided", "none")
    lines = [
        far,
        *map(curve, ARMS),
        claim(),
        claim("far", theirs="unguided", quantity="best_score"),
    ]
    axes = forest_figure(Records.read(write_folder(tmp_path, lines)).findings).axes[0]
    assert axes.get_xscale() == "symlog"
    axes = forest_figure(Records.read(write_folder(tmp_path, lines[1:-1])).findings).axes[0]
    assert axes.get_xscale() == "linear"


def test_curves_are_means_over_units_with_bands_where_all_units_reach(records: Records) -> None:
    score, gap = curves_figure(records.arms).axes
    assert score.get_ylabel() == "accuracy ↑"
    assert score.get_xscale() == "log"
    drawn = {line.get_marker(): np.asarray(line.get_xydata()) for line in score.lines}
    points = records.arms[3].points
    means = points.groupby("scale")["score"].mean()
    np.testing.assert_allclose(drawn["o"][:, 1], means)
    logs = np.log(points["pixel_fid"]).groupby(points["scale"]).mean()
    np.testing.assert_allclose(drawn["o"][:, 0], np.exp(logs))
    assert len(score.collections) == len(ARMS), "a band for each arm but the one that is a point"
    band = np.asarray(score.collections[0].get_paths()[0].vertices)
    nearest, farthest = (
        records.arms[1].points.groupby("unit")["pixel_fid"].agg(["min", "max"])
    ).T.values
    assert nearest.max() < band[:, 0].min() < band[:, 0].max() < farthest.min()
    beliefs = {line.get_marker(): line for line in gap.lines}
    np.testing.assert_allclose(
        np.asarray(beliefs["o"].get_ydata(), dtype=float),
        points.groupby("scale")["gap"].mean(),
    )


def test_an_arm_that_guides_nothing_is_drawn_beside_those_of_its_metric(tmp_path: Path) -> None:
    error = {"metric": "depth_rmse", "higher_is_better": False}
    arms = [curve("unguided", "none"), curve("ppap", "resnet"), curve("ppap", "depth") | error]
    figure = curves_figure(Records.read(write_folder(tmp_path, arms)).arms)
    depth, resnet = figure.axes[:2]
    assert [axes.get_ylabel() for axes in (depth, resnet)] == ["depth error ↓", "accuracy ↑"]
    assert [len(axes.lines) for axes in (depth, resnet)] == [1, 2]


def test_where_no_guide_tells_its_belief_there_is_no_panel_for_it(tmp_path: Path) -> None:
    silent = curve("ppap", "depth")
    for point in silent["points"]:
        point["belief"] = None
    arms = Records.read(write_folder(tmp_path, [silent, curve("ppap", "resnet")])).arms
    score, _, below, gap = curves_figure(arms).axes
    assert (below.get_visible(), gap.get_visible()) == (False, True)
    assert score.get_xlabel() == gap.get_xlabel() != ""
    assert len(curves_figure(arms[:1]).axes) == 1


def test_no_name_in_the_legend_is_cut(tmp_path: Path) -> None:
    arms = [curve("ppap") | {"method": f"an arm with quite a long name, {k}", "key": str(k)}
            for k in range(9)]  # fmt: skip
    figure = curves_figure(Records.read(write_folder(tmp_path, arms)).arms)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.canvas.get_width_height()[0]


def test_a_page_opens_with_its_findings(built: Path, records: Records) -> None:
    page = (built / "index.html").read_text()
    assert page.index('id="findings"') < page.index("Setting fashion")
    opening = page[page.index('id="findings"') : page.index("Setting fashion")]
    assert "Of 5: 3 supported, 1 refuted, 1 open." in opening
    for finding in records.findings:
        assert opening.count(f">{finding.claim.statement}<") == 1
        assert f'<b class="{finding.verdict}">{finding.verdict}</b>' in opening
    found = elements(page)
    targets = {a["id"] for _, a in found.found if "id" in a}
    tests = {f"fashion-test-{finding.claim.key}".replace(" ", "-") for finding in records.findings}
    linked = {a[1:] for a in elements(opening).attributes("a", "href")}
    assert tests | {"fashion-test-claims-contrasts", "fashion-test-claims-curves"} == linked
    assert linked <= targets


def test_claims_of_several_predictors_are_seen_at_a_glance(tmp_path: Path) -> None:
    shorter = claim("as good", ours="ppap", theirs="multi-experts", expected="equivalent",
                    margin=0.03, predictor="vit")  # fmt: skip
    arms = [curve(name, predictor) for predictor in ("resnet", "vit") for name in ARMS]
    folder = write_folder(tmp_path, [info("claims", {}), *arms, claim(), shorter, *CLAIMS[2:4]])
    build(folder)
    page = (folder / "index.html").read_text()
    table = page.split('<table class="glance">')[1].split("</table>")[0]
    head, *lines = [line.split("</tr>")[0].split("<t")[1:] for line in table.split("<tr>")[1:]]
    assert [part.split("<br>")[-1].split("<")[0] for part in head] == [
        'h scope="col">claim', "resnet", "vit",
    ]  # fmt: skip
    findings = {(f.claim.name, f.claim.predictor): f for f in Records.read(folder).findings}
    names = [line[0].split(">")[1].split("<")[0] for line in lines]
    assert names == ["experts beat one network", "worse", "missing", "as good"]
    for name, (_, *cells) in zip(names, lines, strict=True):
        for cell, predictor in zip(cells, ("resnet", "vit"), strict=True):
            finding = findings.pop((name, predictor), None)
            if finding is None:
                assert cell == "d></td>"
                continue
            assert f'class="{finding.verdict}"' in cell
            place = cell.split('href="#')[1].split('"')[0]
            assert f'<tr id="{place}"' in page
            test = finding.test
            assert (f"<br>{test.value:+.3f} " if test else "</a></td>") in cell
    assert not findings


def test_claims_of_one_place_need_no_glance(built: Path) -> None:
    assert 'class="glance"' not in (built / "index.html").read_text()


def test_a_page_tells_every_unit_of_a_test(built: Path, records: Records) -> None:
    told = embedded((built / "index.html").read_text())
    assert set(elements((built / "index.html").read_text()).attributes("tr", "data-key")) == set(
        told
    )
    for finding in records.findings:
        entry = told[f"fashion-test/{finding.claim.key}"]
        assert entry["kind"] == "claim"
        assert entry["verdict"] == finding.verdict
        assert entry["reading"]["ours"] == pytest.approx(list(finding.reading.ours))  # type: ignore[index]
    assert "points" not in told["fashion-test/curve-ppap-resnet"]


def test_what_is_infinite_does_not_stop_the_script(tmp_path: Path) -> None:
    flat = curve("ppap")
    for point in flat["points"]:
        point["score"], point["pixel_fid"] = 0.5, 1.0 + point["scale"]
    lines = [flat, flat | {"method": "single", "key": "b"}, claim(ours="ppap", quantity="area")]
    lines[1] = lines[1] | {"points": [p | {"score": 0.25} for p in flat["points"]]}
    folder = write_folder(tmp_path, lines)
    (finding,) = Records.read(folder).findings
    assert finding.test is not None
    assert math.isinf(finding.test.t)
    build(folder)
    told = embedded((folder / "index.html").read_text())
    assert told[f"fashion-test/{finding.claim.key}"]["test"]["t"] is None  # type: ignore[index]


def test_a_page_without_claims_has_no_findings(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [curve("ppap")])
    build(folder)
    assert "findings" not in (folder / "index.html").read_text().split("</style>")[1]


def test_columns_that_wait_are_asked_for(built: Path) -> None:
    page = (built / "index.html").read_text()
    assert page.count('<button type="button" class="columns">') == 2
    head = page[page.index(">claim</button>") : page.index(">source</button>")]
    shown = [part for part in head.split("<th ")[1:] if "more" not in part.split(">")[0]]
    assert [part.split('type="button">')[1].split("<")[0] for part in shown] == [
        "verdict", "predictor", "difference", "p (Holm)", "compared",
    ]  # fmt: skip


def test_no_two_of_many_methods_look_alike() -> None:
    looks = styles([f"method {place}" for place in range(36)])
    assert len({(look.colour, look.marker) for look in looks.values()}) == 36
    assert len({(look.colour, look.dash) for look in looks.values()}) == 36
