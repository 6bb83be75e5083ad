"""From a results folder to its page, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.sweeps import SWEEPS
from reports.__main__ import main
from reports.build import build, build_all, results_folders
from reports.records import RecordError, Records
from tests.reports.conftest import (
    PROVENANCE,
    grid,
    info,
    noise_accuracy,
    row,
    tradeoff,
    write_folder,
)

ROOT = Path(__file__).parents[2]
CURVES, TRADEOFF, SAMPLES = "methods-noise-accuracy", "methods-tradeoff", "methods-samples"
OUTPUTS = ["methods.csv", "methods.tex", f"{CURVES}.png", f"{CURVES}.svg"]
OUTPUTS += [f"{TRADEOFF}.png", f"{TRADEOFF}.svg", f"{SAMPLES}.png", "methods.md", "index.html"]


def test_build_writes_every_output(built: Path) -> None:
    assert {path.name for path in built.iterdir()} == {"records.jsonl", "grids.npz", *OUTPUTS}
    assert all((built / name).stat().st_size > 500 for name in OUTPUTS)
    assert all(json.loads(line) for line in (built / "records.jsonl").read_text().splitlines())
    page = (built / "methods.md").read_text()
    assert all(f"({name})" in page for name in OUTPUTS if name.endswith(".png"))
    assert page.startswith("# ")
    assert "95 % bootstrap interval" in page


def test_build_is_a_pure_function_of_the_records(built: Path, folder: Path) -> None:
    written = build(folder)
    assert written == [folder / name for name in OUTPUTS]
    assert all(path.read_bytes() == (built / path.name).read_bytes() for path in written)


@pytest.mark.parametrize(
    ("record", "outputs"),
    [
        (row("ppap", "vit"), ["methods.csv", "methods.tex"]),
        (noise_accuracy("ppap", "vit", 0), [f"{CURVES}.png", f"{CURVES}.svg"]),
        (tradeoff("unguided", "none", 0.0), [f"{TRADEOFF}.png", f"{TRADEOFF}.svg"]),
        (tradeoff("ppap", "vit", 1.0) | {"fid": None}, [f"{TRADEOFF}.png", f"{TRADEOFF}.svg"]),
        (grid("unguided", "none"), [f"{SAMPLES}.png"]),
    ],
)
def test_absent_kinds_are_left_out(tmp_path: Path, record: Any, outputs: list[str]) -> None:
    folder = write_folder(tmp_path, [record])
    assert [path.name for path in build(folder)] == [*outputs, "methods.md", "index.html"]
    page = (folder / "methods.md").read_text()
    for name in OUTPUTS:
        if name.endswith(".png"):
            assert (name in page) == (name in outputs)
    assert ("| method" in page) == ("methods.csv" in outputs)


def test_importing_and_building_leaves_torch_alone(small: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import reports.__main__; "
        f"reports.__main__.main(['build', {str(small)!r}]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert all((small / name).exists() for name in OUTPUTS)


def test_command_builds_the_folders_given(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_folder(tmp_path / "other", [row("ppap", "vit")])
    assert main(["build", str(small), str(other)]) == 0
    expected = [small / name for name in OUTPUTS]
    names = ("methods.csv", "methods.tex", "methods.md", "index.html")
    expected += [other / name for name in names]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in expected]


def test_command_finds_the_folders_by_itself(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (small.parent / "without records").mkdir()
    found = results_folders(small.parent)
    monkeypatch.setattr("reports.__main__.results_folders", lambda: found)
    assert found == [small]
    page = small.parent / "index.html"
    assert main(["build", "--page", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert page.read_text() == (small / "index.html").read_text()


def test_no_results_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no folder below .* has records\.jsonl; run a sweep"):
        results_folders(tmp_path)


def without(field: str) -> str:
    return json.dumps({k: v for k, v in row("ppap", "vit").items() if k != field})


def seen_on(facts: dict[str, Any]) -> dict[str, Any]:
    return PROVENANCE | {"hardware": PROVENANCE["hardware"] | facts}


MALFORMED = {
    "cut short": (json.dumps(row("ppap", "vit"))[:80], "not JSON"),
    "no object": ("[1, 2]", "kind None is none of row, noise_accuracy, tradeoff, grid, strip"),
    "unknown kind": ('{"kind": "rows"}', "kind 'rows'"),
    "missing field": (without("provenance"), "row: provenance is missing"),
    "text for a number": (json.dumps(row("ppap", "vit", fid="7")), 'row: fid cannot be "7"'),
    "percent for a share": (json.dumps(row("ppap", "vit", accuracy=88.6)), "accuracy cannot be 88"),
    "infinite": (json.dumps(row("ppap", "vit", fid=float("inf"))), "fid cannot be Infinity"),
    "flag for a count": (json.dumps(row("ppap", "vit", experts=True)), "experts cannot be true"),
    "no seeds": (json.dumps(row("ppap", "vit", seeds=[])), "seeds cannot be []"),
    "provenance": (
        json.dumps(row("ppap", "vit", provenance=PROVENANCE | {"dirty": None})),
        "provenance.dirty cannot be null",
    ),
    "hardware": (
        json.dumps(row("ppap", "vit", provenance=PROVENANCE | {"hardware": {}})),
        "provenance.hardware.cpu is missing",
    ),
    "instructions without threads": (
        json.dumps(row("ppap", "vit", provenance=seen_on({"instruction_set": "AVX2"}))),
        "provenance.hardware.threads is missing",
    ),
    "one of several machines": (
        json.dumps(row("ppap", "vit", provenance=PROVENANCE | {"machines": [{"cpu": "x"}]})),
        "provenance.machines.cores is missing",
    ),
    "machines": (
        json.dumps(row("ppap", "vit", provenance=PROVENANCE | {"machines": {"cpu": "x"}})),
        "provenance.machines is no list",
    ),
    "uneven curve": (
        json.dumps(noise_accuracy("ppap", "vit", 0) | {"timesteps": [0]}),
        "timesteps and accuracy differ in length",
    ),
    "another budget": (
        json.dumps(row("ppap", "vit", budget="full")),
        "a record of fashion/full among fashion/test",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_line_is_one_clear_line_and_status_2(
    folder: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line, problem = MALFORMED[case]
    records = folder / "records.jsonl"
    whole = records.read_text()
    records.write_text(whole + line + "\n")
    assert main(["build", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {records}:{len(whole.splitlines()) + 1}: ")
    assert captured.err.count("\n") == 1
    assert problem in captured.err
    assert "; mend or delete the line" in captured.err or "; keep one setting" in captured.err
    assert not (folder / "methods.md").exists(), "nothing is written from malformed records"


def test_missing_folder_and_empty_records_are_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(tmp_path / "nowhere")]) == 2
    assert "nowhere has no records.jsonl; run the sweep" in capsys.readouterr().err
    assert main(["build", str(write_folder(tmp_path / "empty", []))]) == 2
    assert "is empty; run the sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        (None, r"grids\.npz cannot be read"),
        ({"other": np.zeros((10, 2, 4, 4), np.uint8)}, "has no array 'ppap/vit'"),
        ({"ppap/vit": np.zeros((10, 2, 4, 4))}, r"is float64 \(10, 2, 4, 4\), not uint8"),
        ({"ppap/vit": np.zeros((9, 2, 4, 4), np.uint8)}, r"is uint8 \(9, 2, 4, 4\)"),
        ({"ppap/vit": np.zeros((10, 2, 4, 4, 1), np.uint8)}, r"\(10, columns, H, W\) or"),
    ],
)
def test_wrong_grids_are_refused(tmp_path: Path, arrays: Any, problem: str) -> None:
    folder = write_folder(tmp_path, [grid("ppap", "vit")])
    (folder / "grids.npz").unlink()
    if arrays is not None:
        np.savez(folder / "grids.npz", **arrays)
    with pytest.raises(RecordError, match=problem):
        Records.read(folder)


def test_damaged_grids_are_refused(tmp_path: Path) -> None:
    """Compressed as the harness writes them, where it is zlib that notices."""
    folder = write_folder(tmp_path, [grid("ppap", "vit")])
    path = folder / "grids.npz"
    np.savez_compressed(path, **{"ppap/vit": np.zeros((10, 2, 40, 40), np.uint8)})
    damaged = bytearray(path.read_bytes())
    damaged[60:68] = bytes(8)
    path.write_bytes(damaged)
    with pytest.raises(RecordError, match=r"grids\.npz cannot be read"):
        Records.read(folder)


def test_a_page_that_would_be_too_large_goes_without_samples_and_costs_no_table(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(small)
    whole = (small / "index.html").read_text()
    monkeypatch.setattr("reports.build.MAX_BYTES", len(whole) - 1)
    assert build(small)[-1] == small / "index.html"
    short = (small / "index.html").read_text()
    assert len(short) < len(whole)
    assert "samples of ppap" in whole
    assert "samples of ppap" not in short
    assert "see methods-samples.png" in short
    build_all([small], small / "all.html")
    assert "samples of ppap" not in (small / "all.html").read_text()
    monkeypatch.setattr("reports.build.MAX_BYTES", 1)
    assert build_all([small], small / "all.html")[-1].stat().st_size > 1, "what was run is shown"


@pytest.mark.parametrize("value", ["four", 0, True, None])
def test_a_word_on_a_numeric_axis_is_one_line(
    value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rank = row("ppap", "vit") | {"axes": {"rank": value}}
    folder = write_folder(tmp_path, [info("methods", {"rank": "log"}), rank])
    assert main(["build", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"row ppap: rank is on a log scale and cannot be {value!r}" in line
    assert not (folder / "methods.csv").exists()


def test_the_map_from_the_paper_names_sweeps_that_are_and_every_one_that_has_records() -> None:
    """What is said to have no record has none; tests of documents follow the links."""
    text = (ROOT / "reports" / "README.md").read_text()
    table = text[text.index("## From the paper") :].split("\n## ")[0]
    lines = [line.split("|")[2:4] for line in table.splitlines() if line.startswith("| ")]
    commands = [
        (names, result) for cell, result in lines[1:] for names in re.findall(r"`([^`]+)`", cell)
    ]
    named = {name for names, _ in commands for name in names.partition(" --")[0].split()}
    assert named <= set(SWEEPS)
    recorded = {
        json.loads(line)["sweep"]
        for folder in results_folders()
        for line in (folder / "records.jsonl").read_text().splitlines()
    }
    missing = {
        names for names, result in commands if "no record yet" in result and "(" not in result
    }
    assert not missing & recorded
    assert recorded <= named
