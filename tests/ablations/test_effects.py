"""An option that changes nothing is refused, or named, before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablations.__main__ import main
from ablations.errors import UserError
from ablations.runs import Options

SIGNED = "ablations.examples.signed"


def notes(*sweeps: str, **options: object) -> list[str]:
    made = Options(sweeps, **options)  # type: ignore[arg-type]
    return made.notes(made.lab())


@pytest.mark.parametrize(
    ("sweeps", "words", "message"),
    [
        ("claims", ["--seeds", "2"], "seeds=2 changes nothing in claims; leave it out, or change"),
        ("claims", ["--seeds", "2"], "change what curves have instead: --set units=2"),
        ("claims", ["--samples", "20"], "instead: --set curve_samples=20"),
        ("claims refinements", ["--set", "seeds=9"], "in claims, refinements;"),
        ("tuning", ["--seeds", "5"], "seeds=5 changes nothing in tuning; leave it out"),
        ("tuning", ["--scales", "4", "8"], "scales=4,8 changes nothing"),
        ("memory", ["--set", "temperature=0.5"], "temperature=0.5 changes nothing in memory"),
        ("memory throughput", ["--set", "doublings=2"], "in memory, throughput"),
        ("memory", ["--set", "learning_rate=0.5"], "learning_rate=0.5 changes nothing"),
        ("claims", ["--scales", "4", "--set", "curve_scales=2,4"], "curve_scales=2,4 changes"),
        ("memory", ["--predictors", "vit"], "predictor vit changes nothing in memory"),
        ("rank", ["--predictors", "resnet", "vit"], "predictor vit changes nothing in rank"),
        ("rank", ["--rows", "rank 1", "--set", "trials=3"], "trials=3 changes nothing in rank"),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_refused_in_one_line(
    sweeps: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *sweeps.split(), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_what_some_sweeps_take_no_notice_of_is_told_and_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["methods", "memory", "claims", "--seeds", "2", "--store", str(tmp_path)]
    for command in (["run", "--dry-run"], ["status"]):
        assert main([*command, *asked]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "note: seeds=2 changes nothing in memory, claims"
        assert "note" not in lines[1]


@pytest.mark.parametrize("sweep", ["methods", "claims", "tuning", "memory"])
def test_without_options_there_is_nothing_to_tell(sweep: str) -> None:
    assert notes(sweep) == []
    assert notes(sweep, seeds=3, changes=("temperature=0.25",)) == []  # as it is anyway


@pytest.mark.parametrize(
    ("sweep", "options"),
    [
        ("methods", {"seeds": 2, "samples": 20, "steps": 9, "synthetic": 30, "scales": (4.0,)}),
        ("methods", {"predictors": ("vit",), "changes": ("ancestral_steps=9", "resamples=9")}),
        ("claims", {"scales": (4.0,), "changes": ("units=2", "doublings=1", "order=descending")}),
        ("tuning", {"seeds": 1, "changes": ("noisy_images=10",)}),
        ("peers", {"predictors": ("vit",), "changes": ("trials=2", "timed_images=8")}),
        ("peers", {"scales": tuple(map(float, range(1, 14))), "changes": ("trials=13",)}),
        ("rank", {"predictors": ("vit",), "changes": ("learning_rate=0.01", "start=base")}),
        ("scale", {"scales": (3.0, 5.0)}),
        ("memory", {"changes": ("expert_counts=1,5",)}),
        ("claims", {"rows": ("naive",), "synthetic": 30, "steps": 9}),  # of other rows' experts
    ],
)  # fmt: skip
def test_what_changes_something_is_not_spoken_of(sweep: str, options: dict[str, object]) -> None:
    assert notes(sweep, **options) == []


def test_a_guide_without_a_row_is_told() -> None:
    assert notes("claims", plugin=(SIGNED,)) == [f"the guide {SIGNED} has no row in claims"]
    assert notes("methods", plugin=(SIGNED,)) == []
    assert notes("methods", plugin=(SIGNED,), rows=(SIGNED,)) == []  # no row without it


def test_an_option_of_which_no_predictor_is_left_is_still_refused() -> None:
    with pytest.raises(UserError, match="seeds=2 changes nothing"):
        notes("claims", seeds=2, predictors=("vit",))
