"""Killed anywhere, a run goes on where it stopped; longer: python -m tests.ablations.kill."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.ablations.kill import survive


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_nothing_is_lost_and_nothing_done_twice_under_random_kills(tmp_path: Path) -> None:
    survey = survive(["tests.ablations.toy_run"], 8, 1, tmp_path, longest=5.0)
    assert sum(survey.kills.values()) == 8
    assert survey.records_equal
    assert survey.rewritten == 0
    assert survey.orphans == 0
    assert survey.gave_up == 0
    assert survey.artifacts == 40
