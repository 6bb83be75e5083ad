"""Options that change an experiment: rows, scales, fields, and files of options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations.__main__ import main
from ablations.cells.results import Comparison, PartialComparison, Result, Row, TradeoffPoint
from ablations.cells.selection import Selection
from ablations.errors import UserError
from ablations.machine.store import Artifact
from ablations.runs import OUTPUT, Options
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.sweeps import SWEEPS, Lab

METHODS = ("methods",)


def lab(**changes: object) -> Lab:
    made = Lab(load_setting("fashion"), BUDGETS["default"], "default", ("resnet",))
    return replace(made, **changes)  # type: ignore[arg-type]


def built(options: Options) -> list[Result]:
    return options.results(options.lab())["methods"]


def keys(cells: list[Result], kind: type[Result] = Result) -> dict[str, str]:
    return {cell.label(): cell.key for cell in cells if isinstance(cell, kind)}


def test_rows_that_are_asked_for_come_with_what_they_are_compared_with() -> None:
    whole, some = built(Options(METHODS)), built(Options(METHODS, rows=("ppap",)))
    assert {cell.about.method for cell in some} == {"ppap", "single"}
    assert {cell.about.method for cell in some if not isinstance(cell, Row)} == {"ppap"}
    assert keys(some, Row).items() <= keys(whole, Row).items()  # the same cells, not computed anew
    assert any(isinstance(cell, TradeoffPoint) for cell in some)


def test_a_star_stands_for_the_rest_of_a_label() -> None:
    found = built(Options(METHODS, rows=("multi*", "unguided")))
    assert {cell.about.method for cell in found} == {"multi-experts", "single", "unguided"}


def test_without_rows_all_are_built_as_they_were() -> None:
    every = list(SWEEPS["methods"].build(lab()))
    assert not any(isinstance(cell, PartialComparison) for cell in every)
    assert keys(every) == keys(list(SWEEPS["methods"].build(lab(rows=("*",)))))


def test_p_values_of_some_rows_are_no_smaller_than_among_all() -> None:
    every = [c for c in SWEEPS["methods"].build(lab()) if isinstance(c, Comparison)]
    some = [c for c in SWEEPS["methods"].build(lab(rows=("naive",))) if isinstance(c, Comparison)]
    measured = {
        test.key: Artifact({name: {"value": 0.1, "p": 0.01 * place} for name in test.metrics()})
        for place, test in enumerate(every[0].tests, 1)
    }

    def p_values(cell: Comparison) -> dict[str, float]:
        found = cell.compute(lambda test: measured[test.key]).meta["record"]
        assert found["comparisons"] == 3
        assert found.get("left_out", 0) == 3 - len(cell.tests)
        return {name: told["p_corrected"] for name, told in found["differences"].items()}

    among_all, alone = (
        p_values(next(c for c in cells if c.about.method == "naive" and c.family == 3))
        for cells in (every, some)
    )
    assert all(alone[name] >= among_all[name] for name in among_all)
    assert max(alone.values()) == pytest.approx(0.03)


def test_an_unknown_row_is_told_with_those_there_are() -> None:
    options = Options(("methods", "rank"), rows=("ppap", "pap"))
    with pytest.raises(UserError, match=r"a row 'pap'; choose from .*ppap; rank 1"):
        options.results(options.lab())


def test_the_name_of_a_claim_is_no_row() -> None:
    options = Options(("claims",), rows=("experts beat one network",))
    with pytest.raises(UserError, match="no sweep of claims has a row") as refused:
        options.results(options.lab())
    assert "beat" not in str(refused.value).partition("choose from")[2]


def test_a_sweep_without_the_rows_is_left_out() -> None:
    options = Options(("methods", "rank"), rows=("rank 4",))
    assert list(options.results(options.lab())) == ["rank"]


def test_one_scale_is_every_rows_and_of_several_each_row_has_its_own() -> None:
    def scale_of(*scales: float) -> Any:
        options = Options(("rank",), scales=scales)
        row = options.results(options.lab())["rank"][0]
        assert isinstance(row, Row)
        return row.figures.scores[0].samples.guidance[0].scale

    assert scale_of() == 16.0
    assert scale_of(4.0) == 4.0
    selection = scale_of(4.0, 8.0)
    assert isinstance(selection, Selection)
    assert [score.samples.guidance[0].scale for score in selection.candidates] == [4.0, 8.0]


def test_the_sweep_of_scales_is_over_those_that_are_given() -> None:
    options = Options(("scale",), scales=(3.0, 5.0))
    rows = [cell for cell in options.results(options.lab())["scale"] if isinstance(cell, Row)]
    assert {dict(row.about.axes)["scale"] for row in rows} == {3.0, 5.0}
    assert sum(row.about.reference for row in rows) == 1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (Options(METHODS, changes=("batch=64", "temperature=0.25")), "default"),
        (Options(METHODS, changes=("batch=32",)), "default+batch=32"),
        (Options(METHODS, changes=("samples=300",)), "default+samples=300"),
        (Options(METHODS, samples=300), "default+samples=300"),
        (Options(METHODS, scales=(8.0, 16.0, 32.0)), "default+scales=8,16,32"),
        (Options(METHODS, changes=("scales=4,8.5",)), "default+scales=4,8.5"),
        (Options(METHODS, changes=("ranges=transfer loss",)), "default+ranges=transfer-loss"),
        (
            Options(METHODS, changes=("keep_optimiser=true", "learning_rate=0.001", "seeds=2")),
            "default+keep_optimiser=true+learning_rate=0.001+seeds=2",
        ),
        (Options(METHODS, changes=("temperature=0.5", "temperature=1")), "default+temperature=1"),
    ],
)  # fmt: skip
def test_what_is_changed_is_told_by_the_budgets_name(options: Options, name: str) -> None:
    made = options.lab()
    assert made.budget_name == name
    assert options.folder(made) == OUTPUT / f"fashion-{name}"
    assert built(options)[0].about.budget == name
    _, *told = name.split("+")
    again = Options(METHODS, changes=tuple(told)).lab()
    assert (again.budget, again.budget_name) == (made.budget, name), "as retime reads it"


def test_a_change_reaches_every_bank_that_it_is_for() -> None:
    def rows(change: str) -> list[Row]:
        return [c for c in built(Options(METHODS, changes=(change,))) if isinstance(c, Row)]

    banks = [bank for row in rows("learning_rate=0.5") for bank in row.banks]
    assert {bank.training.learning_rate for bank in banks} == {0.5}
    changed = rows("temperature=0.5")
    temperatures = {row.about.method: row.banks[0].temperature for row in changed if row.banks}
    assert temperatures == {"single": 0.25, "multi-experts": 0.25, "ppap": 0.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "colour=red"], "--set: no field 'colour'; choose from seeds, samples"),
        (["--set", "batch"], "'batch' is no field=value"),
        (["--set", "batch=many"], "--set batch=many: invalid literal"),
        (["--set", "batch=0"], "batch must be at least 1, got 0"),
        (["--set", "selection_samples=3"], "selection_samples must be at least 10, got 3"),
        (["--set", "resamples=1"], "resamples must be at least 2, got 1"),
        (["--set", "temperature=-1"], "temperature cannot be -1"),
        (["--set", "length=nan"], "length cannot be nan"),
        (["--set", "scales="], "scales has no value"),
        (["--set", "start=nowhere"], "choose from"),
        (["--set", "normalised=1"], "choose from false, true"),
        (["--set", "experts=3"], "no field 'experts'"),
        (["--set", "samples=20", "--samples", "30"], "say two things"),
        (["--scales", "4", "4"], "scales has no value, or one twice"),
        (["--scales", "inf"], "scales cannot be inf"),
        (["--scales", "big"], "--help"),
    ],
)
def test_a_change_that_cannot_be_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "methods", "--dry-run", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("sweep", ["claims", "speed-quality", "refinements", "peers"])
def test_a_curve_needs_a_scale_that_can_be_doubled(sweep: str) -> None:
    """Of a scale of 0 it would have several points, which no report can tell apart."""
    options = Options((sweep,), budget="smoke", scales=(0.0,))
    with pytest.raises(UserError, match="scale"):
        options.results(options.lab())


def test_what_a_sweep_varies_itself_cannot_be_changed() -> None:
    options = Options(("temperature",), changes=("temperature=0.5",))
    with pytest.raises(UserError, match="sweep temperature varies temperature itself"):
        options.results(options.lab())


def test_options_stand_in_a_file_and_the_command_line_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'sweeps = "rank"\nbudget = "smoke"\nrows = ["rank 1", "rank 2"]\npredictors = ["vit"]\n'
        "dry-run = true\nsamples = 20\nscales = [4, 8]\n"
        "[set]\ntemperature = 0.5\nnormalised = false\nresamples = 50\n"
    )
    assert main(["run", "--config", str(path), "--samples", "30", "--set", "temperature=2"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "rank on fashion, budget smoke+normalised=false"
        "+resamples=50+samples=30+scales=4,8+temperature=2: "
    )
    assert "rank: 0 of 5 results" in told  # rows 1, 2 and the reference 4, and two differences
    assert main(["run", "scale", "--config", str(path), "--rows", "ppap, scale 4"]) == 0
    assert "scale on fashion, budget smoke+" in (told := capsys.readouterr().out)
    assert "+samples=20+" in told
    assert main(["status", "--config", str(path)]) == 0
    assert "rank: 0 of 5 results" in capsys.readouterr().out, "whatever a run has besides"
    path.write_text('sweeps = "experts"\ndry-run = true\n[set]\nexpert_counts = [1, 2]\n')
    assert main(["run", "--config", str(path)]) == 0
    assert "experts on fashion, budget default+expert_counts=1,2: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("seeds = ", "Invalid value"),
        ("colour = 3", "mine.toml: unrecognized arguments: --colour=3"),
        ('seeds = "many"', "mine.toml: argument --seeds: invalid int value: 'many'"),
        ("rows = [[1]]", "rows cannot be [[1]]"),
        ("set = 3", "set is no table"),
        ('config = "other.toml"', "mine.toml: it names another file"),
    ],
)
def test_a_file_that_cannot_be_is_one_line(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    assert main(["run", "--dry-run", "--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def guided_by(sweep: str, *tasks: str) -> set[str]:
    made = Lab(load_setting("scenes"), BUDGETS["default"], "default", ("resnet",), tasks=tasks)
    return {cell.about.predictor for cell in SWEEPS[sweep].build(made)}


def test_of_several_tasks_those_that_are_asked_for_guide_by_themselves() -> None:
    assert guided_by("claims", "class") == {"class"}
    assert guided_by("claims", "depth", "class") == {"class", "depth"}
    assert guided_by("dense", "depth") == {"depth", "none"}
    assert guided_by("dense") == {"class", "depth", "segmentation", "all three", "none"}
    assert guided_by("peers", "class") == {"resnet", "none"}  # a predictor of classes
    assert guided_by("peers", "segmentation") == {"segmentation", "none"}
    assert guided_by("peers", "all three") == {"all three", "none"}
    assert guided_by("dense", "all three", "depth") == {"depth", "all three", "none"}


def test_a_task_that_the_setting_does_not_have_is_said() -> None:
    with pytest.raises(UserError, match="no task 'depth'"):
        Options(METHODS, tasks=("depth",)).lab()
    with pytest.raises(UserError, match="no task 'all three'"):
        Options(METHODS, tasks=("all three",)).lab()
    assert Options(METHODS, setting="scenes", tasks=("all three",)).lab().tasks == ("all three",)
