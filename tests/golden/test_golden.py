"""The library agrees with the published implementations, and the check can tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.golden.__main__ import main
from tests.golden.check import KINDS, check, kind_of

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.npz"))
SMALLEST = [
    min(FOLDER.glob(f"{kind}*.npz"), key=lambda path: path.stat().st_size) for kind in KINDS
]


def altered(path: Path, folder: Path, **changes: np.ndarray | None) -> Path:
    """A copy of a file with some arrays replaced, or dropped where None."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files} | changes
    copy = folder / path.name
    np.savez(copy, **{name: value for name, value in arrays.items() if value is not None})
    return copy


def array(path: Path, name: str) -> np.ndarray:
    with np.load(path) as archive:
        return archive[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_library_agrees_with_every_recorded_figure(path: Path) -> None:
    outcome = check(path)
    assert outcome.agrees, f"{outcome.refusal or outcome.worst}"
    assert not outcome.unchecked


def test_a_file_of_every_kind_is_here() -> None:
    assert {kind_of(path) for path in FILES} == set(KINDS)


@pytest.mark.parametrize("path", SMALLEST, ids=lambda path: path.stem)
def test_a_perturbed_figure_is_a_miss(path: Path, tmp_path: Path) -> None:
    figures = ("output", "output_published", "ddim_1", "eta1_step10")
    name = next(n for n in figures if n in np.load(path).files)
    figure = array(path, name).copy()
    figure.flat[-1] += 1e-4 * np.abs(figure).max()
    outcome = check(altered(path, tmp_path, **{name: figure}))
    assert not outcome.agrees
    assert outcome.errors[name] == pytest.approx(1e-4, rel=0.5)


@pytest.mark.parametrize("figure", ["ddim_loop", "ddpm_loop"])
def test_a_perturbed_trajectory_is_a_miss(figure: str, tmp_path: Path) -> None:
    path = FOLDER / "diffusion_linear_ddim25_learned.npz"
    recorded = array(path, figure).copy()
    recorded.flat[-1] += 1e-3 * np.abs(recorded).max()
    outcome = check(altered(path, tmp_path, **{figure: recorded}))
    assert not outcome.agrees
    assert outcome.worst == (figure, pytest.approx(1e-3, rel=0.1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_figure_that_is_not_finite_is_a_miss(value: float, tmp_path: Path) -> None:
    path = FOLDER / "ppap_lora_linear.npz"
    figure = array(path, "output_scaled").copy()
    figure.flat[0] = value
    assert not check(altered(path, tmp_path, output_scaled=figure)).agrees


def test_a_timestep_map_must_be_equal(tmp_path: Path) -> None:
    path = FOLDER / "diffusion_linear_ddim25_learned.npz"
    steps = array(path, "timestep_map").copy()
    steps[-1] += 1
    assert check(altered(path, tmp_path, timestep_map=steps)).errors["timestep_map"] == np.inf


def test_keys_must_be_those_of_the_module(tmp_path: Path) -> None:
    path = FOLDER / "adm_unet_plain.npz"
    keys = array(path, "keys")
    assert check(altered(path, tmp_path, keys=keys[::-1])).errors["keys"] == 0
    assert check(altered(path, tmp_path, keys=keys[1:])).errors["keys"] == np.inf


def test_a_configuration_that_the_library_refuses_is_a_miss(tmp_path: Path) -> None:
    config = np.array('{"schedule": "sigmoid", "spacing": "ddim25", "learn_sigma": true}')
    altered(FOLDER / "diffusion_linear_ddim25_learned.npz", tmp_path, config=config)
    assert main([str(tmp_path)]) == 1


def test_other_kinds_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = altered(FOLDER / "adm_unet_plain.npz", tmp_path)
    np.savez(path.with_name("consistency_dps.npz"), x=np.zeros(1))
    np.savez(path.with_name("another.npz"), x=np.zeros(1))
    assert main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert sum("passed over" in line for line in lines) == 2


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_nothing_readable_is_one_line_and_exit_2(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "adm_unet.npz").write_bytes(content)
    assert main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_missing_input_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    altered(FOLDER / "adm_unet_plain.npz", tmp_path, t=None)
    assert main([str(tmp_path)]) == 2
    assert "lacks the input 't'" in capsys.readouterr().err


def test_a_missing_folder_is_exit_2(tmp_path: Path) -> None:
    assert main([str(tmp_path / "none")]) == 2
