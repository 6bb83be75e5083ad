"""Nothing fails after the work: what the end needs is looked at before the first cell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from ablations import preflight
from ablations.__main__ import main
from ablations.errors import UserError
from ablations.machine import engine
from ablations.machine.store import Store
from ablations.runs import ROOT
from tests.ablations.library_alone import ABSENT, meta_path
from tests.reports.conftest import row, write_folder

TINY = ["--budget", "smoke", "--predictors", "resnet", "--workers", "1"]


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def no_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a run comes to its cells."""

    def run(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a cell was computed")

    monkeypatch.setattr(engine, "run", run)


def refused(
    arguments: list[str], store: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> str:
    """The line with which a run is refused."""
    places = ["--store", str(store), "--output", str(output)]
    assert main(["run", "temperature", *TINY, *arguments, *places]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_the_packages_are_those_of_the_dependency_group() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    named = [entry.partition(">=")[0] for entry in groups[preflight.GROUP]]
    assert set(preflight.PACKAGES) <= set(named)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", meta_path())
    for name in [name for name in sys.modules if name.partition(".")[0] in ABSENT]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"need tabulate, which is not installed"):
        preflight.require_packages(("fsspec", "tabulate"))
    with pytest.raises(UserError, match=r"need matplotlib and pandas, which are not installed"):
        preflight.require_packages(("fsspec", "matplotlib", "pandas"))


def test_a_package_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> NoReturn:
        raise ImportError(f"{name} wants another numpy")

    monkeypatch.setattr(preflight.importlib, "import_module", broken)
    with pytest.raises(UserError, match=r"wants another numpy.*--group harness"):
        preflight.require_packages()


def test_an_environment_of_the_library_alone_says_so_before_any_cell(tmp_path: Path) -> None:
    places = ["--store", str(tmp_path / "store"), "--output", str(tmp_path / "out")]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.ablations.library_alone", "run", "methods", *TINY, *places],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])},
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert "need matplotlib, pandas, seaborn and tabulate, which are not installed" in line
    assert "dependency group 'harness': pip install --group harness" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_cell")
@pytest.mark.parametrize("place", ["store", "output"])
def test_a_folder_that_cannot_be_written_is_told_and_none_is_made(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    places = {"store": tmp_path / "a" / "store", "output": tmp_path / "b" / "out"}
    places[place] = tmp_path / "file" / "below"
    line = refused([], places["store"], places["output"], capsys)
    assert str(tmp_path / "file") in line
    assert f"--{place}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("no_cell")
def test_a_read_only_file_system_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_file(dir: Path) -> NoReturn:
        raise OSError(30, "Read-only file system", str(dir))

    monkeypatch.setattr(preflight.tempfile, "NamedTemporaryFile", no_file)
    line = refused([], tmp_path / "store", tmp_path / "out", capsys)
    assert "Read-only file system; name another folder with --store" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_cell")
def test_a_disk_without_room_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(2**40, 2**40, 2**20))
    line = refused([], tmp_path / "store", tmp_path / "out", capsys)
    assert "and 1 are free; make room" in line
    assert not list(tmp_path.iterdir())


def test_folders_of_one_disk_share_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(100, 0, 100))
    preflight.require_room([(tmp_path / "a", 60), (tmp_path / "b", 40)])
    with pytest.raises(UserError, match="make room"):
        preflight.require_room([(tmp_path / "a", 60), (tmp_path / "b", 41)])


@pytest.mark.usefixtures("no_cell")
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("damaged", r"records.jsonl:1: not JSON"),
        (json.dumps(row("ppap", "vit")), "holds results of fashion, budget test, and this run"),
    ],
)
def test_a_results_folder_that_cannot_take_the_records_is_told(
    line: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "out", [])
    (folder / "records.jsonl").write_text(line + "\n")
    assert problem in refused([], tmp_path / "store", folder, capsys)
    assert (folder / "records.jsonl").read_text() == line + "\n"
    assert not (tmp_path / "store").exists()


def test_what_can_be_written_is_left_empty(tmp_path: Path) -> None:
    store, output = Store(tmp_path / "store"), tmp_path / "deep" / "out"
    preflight.require_writable(store, output)
    assert output.is_dir()
    assert not list(output.iterdir())
    assert not list(store.contents())
    preflight.require_writable(Store("memory://place"), output)
