"""Whatever strangers hand in: one line and exit status 2, or an error of ours; nothing is lost.

The cases are listed in ``tests/malformed.py``.
"""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path

import pytest

from ablations.__main__ import main
from ablations.errors import UserError
from ablations.machine import engine
from tests.malformed import CALLS, COMMANDS, RAN, Case, furnish

ROOT = Path(__file__).resolve().parents[1]
OURS = tuple(str(ROOT / folder) for folder in ("ppap", "ablations", "reports", "kernels"))
TYPED = (ValueError, TypeError, OSError, IndexError)
"""Bases of the library's errors; ``UserError`` is the harness's and the reports'."""


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("furnished")
    furnish(folder)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_are_200_different_cases() -> None:
    names = [case.name for case in (*COMMANDS, *CALLS)]
    assert len(set(names)) == len(names) >= 200


@pytest.mark.parametrize("case", [*COMMANDS, *CALLS], ids=lambda case: case.name)
def test_what_is_malformed_is_told_and_nothing_is_lost(
    case: Case,
    furnished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = tmp_path / "here"
    shutil.copytree(furnished, here)
    monkeypatch.setenv("PPAP_MODELS", str(here / "empty"))
    monkeypatch.setenv("PPAP_DATA", str(here / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(engine, "run", lambda *_, **__: pytest.fail("a cell was computed"))
    case.damage(here)
    before = contents(here)
    if isinstance(case.use, tuple):
        assert main([word.format(here=here) for word in case.use]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
    else:
        with pytest.raises((*TYPED, UserError)) as raised:
            case.use(here)
        said = str(raised.value)
        raised_at = traceback.extract_tb(raised.value.__traceback__)[-1].filename
        # What the operating system says of a file is as good as we could say it.
        assert raised_at.startswith(OURS) or isinstance(raised.value, OSError)
    assert len(said.strip().splitlines()) == 1
    assert len(said.split()) > 3  # a sentence
    assert not any((folder / RAN).exists() for folder in (here, furnished))
    assert before.items() <= contents(here).items()
