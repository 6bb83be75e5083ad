"""What the documents name is there, and the figures they state are those of the records."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

import ppap
from ablations.sweeps import HEADLINE, SWEEPS
from ppap.denoisers.catalogue import CLASSIFIERS, DENOISERS
from ppap.experts.adapters.peft import Peft
from tests.records import (
    CLAIMS,
    LONG,
    PEERS,
    PEERS_LONG,
    PEERS_ON_SCENES,
    RESULTS,
    best_point,
    claim_of,
    records_of,
    row_of,
    rows_of,
)
from tests.records import SCENES as ON_SCENES

ROOT = Path(__file__).parents[1]
BRIEF_AND_FULL = ROOT / "README.md", ROOT / "reports" / "FINDINGS.md"
"""What is told of the findings."""
DOCUMENTS = sorted(
    path
    for path in (*BRIEF_AND_FULL, *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md"))
    if not path.relative_to(ROOT).parts[0].startswith(".")
)
WORDS = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)


def finding(first: str) -> list[list[str]]:
    """The cells of a table of the findings, wherever it stands."""
    (path,) = (path for path in BRIEF_AND_FULL if f"\n{first}" in path.read_text(encoding="utf-8"))
    return section(path, first)


def section(path: str | Path, first: str) -> list[list[str]]:
    """The cells of a table whose first line begins so, header and rule left out."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(first))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    for link in links:
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        assert target.exists(), f"{document}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{document}: {link}"


def test_every_session_and_module_that_is_to_be_run_is_there() -> None:
    noxfile = (ROOT / "noxfile.py").read_text()
    named = set(re.findall(r"nox -s ([a-z-]+)", WORDS))
    defined = set(re.findall(r"^def (\w+)\(session", noxfile, re.MULTILINE))
    defined |= set(re.findall(r'name="([a-z-]+)"', noxfile))
    assert named <= defined
    modules = set(re.findall(r"python -m ([\w.]+)", WORDS)) - {"venv", "pip"}
    assert len(modules) > 5
    for name in modules:
        assert importlib.util.find_spec(name), name


def test_every_name_of_the_library_is_one() -> None:
    names = set(re.findall(r"\bppap(?:\.\w+)+", WORDS))
    assert len(names) > 20
    for name in names:
        if name.endswith(".py"):
            continue
        found: object = ppap
        for part in name.split(".")[1:]:
            try:
                found = getattr(found, part)
            except AttributeError:
                found = importlib.import_module(f"{found.__name__}.{part}")  # type: ignore[attr-defined]


def test_the_ways_to_guide_are_those_of_the_table() -> None:
    rows = section("ppap/guidance/README.md", "| method | per step")
    names = {name for row in rows for name in re.findall(r"`([\w-]+)`", row[0])}
    assert names == set(ppap.guidance.METHODS)


def test_the_sweeps_are_those_of_the_table_and_the_headline_has_its_star() -> None:
    rows = section("ablations/README.md", "| sweep | varies")
    found = {
        name: bool(star) for row in rows for name, star in re.findall(r"`([\w-]+)`( \*)?", row[0])
    }
    assert set(found) == set(SWEEPS)
    assert {name for name, star in found.items() if star} == set(HEADLINE)


def test_the_denoisers_are_those_of_the_table() -> None:
    rows = section("ppap/denoisers/README.md", "| name | file")
    text = " ".join(row[0] for row in rows)
    named = set(re.findall(r"`((?:adm|improved|glide)[\w-]*)`", text))
    assert named <= set(DENOISERS) | set(CLASSIFIERS)
    sizes = re.compile(r"\d+")
    families = {sizes.sub("N", name) for name in named}
    left = {sizes.sub("N", name.removesuffix("-vlb")) for name in (*DENOISERS, *CLASSIFIERS)}
    assert left <= families


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "ia3", "loha", "lokr", "oft", "boft"])
def test_the_methods_of_peft_are_taken(method: str) -> None:
    part = Peft(method, 2, layers="^0$")  # type: ignore[arg-type]
    assert part.create(torch.nn.Sequential(torch.nn.Linear(8, 8)), torch.Generator())


def stated(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", cell)]


GARMENTS = {
    "unguided": "unguided", "naive": "naive", "one noise-aware network": "single",
    "five noise-aware networks": "multi-experts", "**PPAP-5": "ppap",
}  # fmt: skip
SCENES = {"unguided": "unguided", "naive": "naive", "**PPAP-5": "ppap"}


CLAIMED = {
    "unguided": "unguided", "naive": "naive", "one noise-aware network": "single",
    "five noise-aware networks": "multi-experts", "five LoRA": "multi-experts, LoRA",
    "PPAP-1": "ppap, 1 expert", "**PPAP-5": "ppap",
}  # fmt: skip


HELD_BACK = {
    "PPAP-5 as published": "ppap", "**PPAP-5": "held back", "PPAP-1": "ppap, 1 expert, held back",
    "five noise-aware": "multi-experts, held back", "one noise-aware": "single, held back",
    "naive": "naive, held back",
}  # fmt: skip


@pytest.mark.parametrize(
    ("first", "methods", "sweep"),
    [
        ("| guided by the ResNet |", CLAIMED, "claims"),
        ("| guided by the ResNet, held back |", HELD_BACK, "refinements"),
    ],
    ids=["claims", "refinements"],
)
def test_a_table_of_curves_is_that_of_their_best_points(
    first: str, methods: dict[str, str], sweep: str
) -> None:
    rows = finding(first)
    assert len(rows) == len(methods)
    for label, _, accuracy, distance in rows:
        (method,) = (name for start, name in methods.items() if label.startswith(start))
        are_of(best_point(CLAIMS, method, "resnet", sweep), accuracy, distance)


def are_of(best: dict[str, str], accuracy: str, distance: str) -> None:
    """The cells state a curve's point, its intervals included."""
    for cell, column, rounding in ((accuracy, "score", 0.00051), (distance, "pixel_fid", 0.051)):
        for number, name in zip(stated(cell), interval_of(column), strict=True):
            assert abs(number - float(best[name])) <= rounding, (best["method"], name)


def interval_of(column: str) -> list[str]:
    """A column, and the ends of its interval."""
    return [column, f"{column}_low", f"{column}_high"]


COMPARED = {
    "naive": "naive", "EluCD": "elucd", "gradient": "x0-gradient", "DPS": "dps", "MPGD": "mpgd",
    "one noise-aware": "single (ADM-G)",
    "PPAP-5 as published": "ppap", "PPAP-5, held back": "ppap, held back",
    "PPAP-5, calibrated": "ppap, calibrated",

    "experts on x_t in DPS": "dps + experts on x_t",
    "experts on x̂₀ in DPS": "dps + experts on x_0",
    "experts on x̂₀ in MPGD": "mpgd + experts on x_0",
    "experts on x_t in EluCD": "elucd + experts on x_t",
    "experts on x̂₀ in EluCD": "elucd + experts on x_0",
    "experts on x_t in Adam": "adam + experts on x_t",
    "experts on x_t in FreeDoM": "freedom + experts on x_t",
    "experts on x_t in TFG": "tfg + experts on x_t",
    "experts on x̂₀ in TFG": "tfg + experts on x_0",
    "universal": "universal", "TFG": "tfg", "LGD-MC": "lgd-mc",
    "FreeDoM": "freedom", "Adam": "adam", "FK steering": "fk-steering",
    "gradient through x̂₀, in 8": "x0-gradient in 8 steps", "DPS, in 10": "dps in 10 steps",
    "FreeDoM, in 5": "freedom in 5 steps", "universal guidance, in 5": "universal in 5 steps",
    "TFG, in 5": "tfg in 5 steps",
}  # fmt: skip


@pytest.mark.parametrize(
    ("first", "folder", "predictor"),
    [
        ("| method | trains?", PEERS, "resnet"),
        ("| with the ViT | trains?", PEERS, "vit"),
        ("| on scenes | trains?", PEERS_ON_SCENES, "resnet"),
        ("| with the better denoiser | trains?", PEERS_LONG, "resnet"),
    ],
)
def test_a_table_of_methods_is_that_of_their_best_points_and_costs(
    first: str, folder: str, predictor: str
) -> None:
    rows = finding(first)
    shown = set()
    for label, _, accuracy, distance, gap, times in rows:
        method = method_of(label)
        shown.add(method)
        best = best_point(folder, method, predictor, "peers")
        are_of(best, accuracy, distance)
        assert abs(float(gap) - float(best["gap"])) <= 0.00051
        cost = row_of(folder, "peers", method, predictor)["relative_seconds"]
        assert abs(float(times) - float(cost)) <= 0.0051
    assert shown == methods_of(folder, predictor), "every method that was run is in the table"


def method_of(label: str) -> str:
    """What records call the method of a row."""
    starts = [start for start in COMPARED if label.strip("*").startswith(start)]
    return COMPARED[max(starts, key=len)]


def methods_of(folder: str, predictor: str) -> set[str]:
    """The ways to guide that were run."""
    return {row["method"] for row in rows_of(folder, "peers") if row["predictor"] == predictor}


@pytest.mark.parametrize(
    ("first", "task"), [("| by depth", "depth"), ("| by segments", "segmentation")]
)
def test_a_table_of_methods_for_maps_is_that_of_their_least_errors(first: str, task: str) -> None:
    shown = set()
    for label, _, error, distance, times in finding(first):
        method = method_of(label)
        shown.add(method)
        best = best_point(PEERS_ON_SCENES, method, task, "peers", best=min)
        are_of(best, error, distance)
        cost = row_of(PEERS_ON_SCENES, "peers", method, task)["relative_seconds"]
        assert abs(float(times) - float(cost)) <= 0.0051
    assert shown == methods_of(PEERS_ON_SCENES, task)


def test_the_table_of_all_three_at_once_is_that_of_their_rows() -> None:
    shown = set()
    for label, _, *cells, times in finding("| all three at once"):
        method = method_of(label)
        shown.add(method)
        row = row_of(PEERS_ON_SCENES, "peers", method, "all three")
        for cell, column in zip(cells, ("accuracy", "depth_rmse", "pixel_error"), strict=True):
            for number, name in zip(stated(cell), interval_of(column), strict=True):
                assert abs(number - float(row[name])) <= 0.00051, (method, name)
        assert abs(float(times) - float(row["relative_seconds"])) <= 0.0051
    assert shown == methods_of(PEERS_ON_SCENES, "all three")


@pytest.mark.parametrize(
    ("label", "task"), [("depth error", "depth"), ("wrong pixels", "segmentation")]
)
def test_the_table_of_dense_targets_is_that_of_the_claims(label: str, task: str) -> None:
    (row,) = (r for r in finding("| scenes | unguided") if r[0].startswith(label))
    arms = ("unguided", "naive", "ppap, 1 expert", "ppap")
    for cell, method in zip(row[1:], arms, strict=True):
        best = best_point(ON_SCENES, method, task, best=min)
        assert abs(stated(cell)[0] - float(best["score"])) <= 0.00051, method


VERDICTS = {"✓": "supported", "✗": "refuted", "?": "open"}
GUIDED = (
    (CLAIMS, "resnet"), (CLAIMS, "vit"),
    (ON_SCENES, "class"), (LONG, "class"), (ON_SCENES, "depth"), (ON_SCENES, "segmentation"),
)  # fmt: skip
SENTENCES = {
    "PPAP-5 beats naive": "naive guidance fails",
    "five labelled experts beat": "experts beat one network",
    "five data-free experts beat": "data-free experts beat one",
    "at large scales five": "one network collapses",
    "five adapters without labels": "no labels are needed",
    "five fully trained experts": "no labels are needed by full experts",
    "five adapters are as good": "adapters suffice",
    "the same with labels": "adapters suffice with labels",
    "an expert had better start": "a chain of experts is better",
    "labels shuffled": "shuffled labels teach nothing",
}
LESS_IS_MORE = {"one network collapses"}


def test_the_table_of_claims_has_every_verdict_of_the_records() -> None:
    rows = finding("| claim | garments")
    assert len(rows) == len(SENTENCES)
    for label, *cells in rows:
        (name,) = (claim for start, claim in SENTENCES.items() if label.startswith(start))
        for cell, (folder, predictor) in zip(cells, GUIDED, strict=True):
            claimed = [r["claim"] for r in rows_of(folder, "claims-contrasts")
                       if r["predictor"] == predictor]  # fmt: skip
            assert bool(cell) == (name in claimed), (label, predictor)
            if cell:
                found = claim_of(folder, "claims", name, predictor)
                says_what_was_found(cell, name, found)
                margin = [float(found["margin"])] if found["expected"] == "equivalent" else []
                assert stated(label) == margin, name


def says_what_was_found(cell: str, name: str, found: dict[str, str]) -> None:
    """Verdict, difference and interval; errors, and what is lost, are better if they are less."""
    assert VERDICTS[cell[0]] == found["verdict"], name
    assert int(found["units"]) == 8
    ours = [float(found[column]) for column in ("difference", "low", "high")]
    if name in LESS_IS_MORE or found["predictor"] in ("depth", "segmentation"):
        ours = [-ours[0], -ours[2], -ours[1]]
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", cell)]
    for number, measured in zip(numbers, ours, strict=True):
        assert abs(number - measured) <= 0.00051, (name, found["predictor"])


CHANGED = {
    "held back": ("refinements", "held back: nearer", "held back: further"),
    "calibrated": ("refinements", "half the marginal: nearer", "half the marginal: further"),
    "calibrated and held back": (
        "refinements", "half the marginal, held back: nearer",
        "half the marginal, held back: further",
    ),
    "calibrated and held back a little (ᾱ^¼)": (
        "refinements", "half the marginal, held back a little: nearer",
        "half the marginal, held back a little: further",
    ),
    "not near the image (above t = 200 only)": (
        "refinements", "not near the image: nearer", "not near the image: further",
    ),
    "**the one that the predictor chooses, without data**": (
        "refinements", "chosen by the predictor: nearer", "chosen by the predictor: further",
    ),
    "calibrated, in 25 steps of DDIM": (
        "speed-quality", "DDIM-25, calibrated is nearer", "DDIM-25, calibrated reaches further",
    ),
}  # fmt: skip


def test_the_table_of_changed_guidance_has_every_verdict_of_the_records() -> None:
    rows = finding("| less PPAP-5 as published")
    assert [row[0] for row in rows] == list(CHANGED)
    for label, *cells in rows:
        sweep, *names = CHANGED[label]
        for cell, (folder, predictor) in zip(
            cells, ((CLAIMS, "resnet"), (ON_SCENES, "class"), (LONG, "class")), strict=True
        ):
            run = (RESULTS / folder / f"{sweep}-contrasts.csv").is_file()
            claims = rows_of(folder, f"{sweep}-contrasts") if run else []
            claimed = {r["claim"] for r in claims if r["predictor"] == predictor}
            assert bool(cell) == (names[0] in claimed), (label, predictor)
            if cell:
                for part, name in zip(cell.split("; "), names, strict=True):
                    says_what_was_found(part, name, claim_of(folder, sweep, name, predictor))


@pytest.mark.parametrize(
    ("folder", "predictor", "words", "chosen"),
    [
        (CLAIMS, "resnet", "On garments it held back all of eight banks", {"held back": 8}),
        (
            ON_SCENES, "class", "on scenes it calibrated seven and left one as published",
            {"calibrated": 7, "as published": 1},
        ),
        (
            ON_SCENES, "segmentation", "it left eight of eight as published", {"as published": 8},
        ),
        (
            LONG, "class", "calibrated seven of eight and is better",
            {"calibrated": 7, "as published": 1},
        ),
    ],
)  # fmt: skip
def test_what_the_predictor_chose_is_told(
    folder: str, predictor: str, words: str, chosen: dict[str, int]
) -> None:
    (found,) = (
        record["chosen"]
        for record in records_of(folder)
        if "chosen" in record and record["predictor"] == predictor
    )
    assert Counter(found) == chosen
    assert words in re.sub(r"\s+", " ", WORDS)


def agrees(cell: str, row: dict[str, str], name: str) -> None:
    numbers = stated(cell)
    columns = [name, f"{name}_low", f"{name}_high"][: len(numbers)]
    for number, column in zip(numbers, columns, strict=True):
        assert abs(number - float(row[column])) <= 0.006, (cell, column)


@pytest.mark.parametrize(
    ("first", "methods", "records", "columns"),
    [
        ("| garments, ResNet", GARMENTS, "fashion-default/methods/resnet", ["", "accuracy", "fid"]),
        (
            "| scenes, all three", SCENES, "scenes-default/dense/all three",
            ["depth_rmse", "pixel_error", "accuracy"],
        ),
    ],
    ids=["garments", "scenes"],
)  # fmt: skip
def test_a_table_of_results_is_that_of_the_records(
    first: str, methods: dict[str, str], records: str, columns: list[str]
) -> None:
    rows = finding(first)
    folder, table, predictor = records.split("/")
    assert len(rows) == len(methods)
    for label, *cells in rows:
        (method,) = (methods[start] for start in methods if label.startswith(start))
        row = row_of(folder, table, method, predictor)
        for cell, column in zip(cells, columns, strict=True):
            if column:
                agrees(cell, row, column)
