"""Compiled graphs on disk: a folder or a package that is unfit costs a compilation, not the run."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppap.compute.packages import package
from ppap.compute.tracing import Traced

INPUT = (torch.ones(2, 3),)
Compiled = list[torch.export.ExportedProgram]


def scale(by: float = 2.0, dtype: torch.dtype = torch.float32) -> Traced:
    """x -> by * x, the factor a constant."""
    arguments = ([torch.tensor(by, dtype=dtype)], torch.ones(2, 3, dtype=dtype))
    return Traced(lambda weights, x: [x * weights[0]], arguments, frozen=True)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """What was compiled; in place of a compiler, a package is an archive of a name."""
    programs: Compiled = []

    def compile_and_package(program: torch.export.ExportedProgram, package_path: str) -> None:
        programs.append(program)
        with zipfile.ZipFile(package_path, "w") as archive:
            archive.writestr("name", f"graph {len(programs)}" + " " * 2000)

    def load_package(path: str) -> str:
        with zipfile.ZipFile(path) as archive:
            return archive.read("name").decode().strip()

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compile_and_package)
    monkeypatch.setattr("torch._inductor.aoti_load_package", load_package)
    return programs


def test_a_graph_is_compiled_once_and_found_again(compiled: Compiled, tmp_path: Path) -> None:
    folder = tmp_path / "not there yet"
    assert package(scale(), INPUT, folder) == ("graph 1", True)
    assert package(scale(), INPUT, folder) == ("graph 1", False)
    assert package(scale(3.0), INPUT, folder) == ("graph 2", True)
    assert {path.suffix for path in folder.iterdir()} == {".pt2"}


def test_a_folder_that_cannot_be_written_costs_a_compilation(
    compiled: Compiled, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        for number in (1, 2):
            found = package(scale(), INPUT, tmp_path / "file" / "compiled")
            assert found == (f"graph {number}", True)
    assert len(caplog.messages) == 2
    assert "cannot be kept" in caplog.messages[0]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "no archive"])
def test_a_damaged_package_is_compiled_anew(
    damage: str, compiled: Compiled, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package(scale(), INPUT, tmp_path)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(
        {"truncated": data[:900], "flipped": data, "empty": b"", "no archive": b"ELF"}[damage]
    )
    with caplog.at_level(logging.WARNING):
        assert package(scale(), INPUT, tmp_path) == ("graph 2", True)
    assert "is damaged and compiled anew" in caplog.text
    assert package(scale(), INPUT, tmp_path) == ("graph 2", False)


def test_bfloat16_constants_tell_graphs_apart(compiled: Compiled, tmp_path: Path) -> None:
    for by, number in ((2.0, 1), (3.0, 2)):
        inputs = (INPUT[0].bfloat16(),)
        assert package(scale(by, torch.bfloat16), inputs, tmp_path) == (f"graph {number}", True)


def test_what_is_found_on_disk_is_not_exported(
    compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exporting takes as long as tracing, and a graph is known by what was traced."""
    package(scale(), INPUT, tmp_path)
    monkeypatch.setattr("torch.export.export", lambda *_: pytest.fail("exported"))
    assert package(scale(), INPUT, tmp_path) == ("graph 1", False)


GRAPHS: dict[str, Callable[[list[Tensor], Tensor], list[Tensor]]] = {
    "another operation": lambda weights, x: [x + weights[0]],
    "another option": lambda weights, x: [torch.clamp(x * weights[0], max=0.5)],
    "a number a little larger": lambda weights, x: [torch.clamp(x * weights[0], max=0.5 + 1e-12)],
    "more results": lambda weights, x: [x * weights[0], x],
}


def test_graphs_inputs_and_layouts_tell_packages_apart(compiled: Compiled, tmp_path: Path) -> None:
    weights, x = [torch.tensor(2.0)], torch.ones(2, 3)
    package(scale(), INPUT, tmp_path)
    for run in GRAPHS.values():
        assert package(Traced(run, (weights, x), frozen=True), INPUT, tmp_path)[1]
    turned = (torch.ones(3, 2).T,)
    assert package(scale(), turned, tmp_path)[1]
    assert package(scale(), INPUT, tmp_path, freezing=True)[1]
    assert len(list(tmp_path.iterdir())) == len(GRAPHS) + 3
