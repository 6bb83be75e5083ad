"""Sweeps: what they are made of, before anything is computed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ablations
from ablations.cells.experts import Experts
from ablations.cells.peer_costs import PeerRow
from ablations.cells.results import Comparison, Result, Row
from ablations.cells.samples import Samples
from ablations.cells.selection import Selection
from ablations.cells.synthesis import Synthesis
from ablations.errors import UserError
from ablations.machine.cell import Cell
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.sweeps import HEADLINE, PPAP, SWEEPS, Sweep, sweep
from ablations.sweeps.lab import Lab, Measured, Sampling
from ablations.sweeps.recipes import LORA, NAIVE
from ppap.experts.routing import NoiseRanges
from ppap.experts.stages import stages


def lab(budget: str = "default", name: str = "fashion") -> Lab:
    setting = load_setting(name)
    return Lab(setting, BUDGETS[budget], budget, setting.predictors)


WEIGHTS = Path(ablations.__file__).parent / "weights"
ANYWHERE = [name for name, found in SWEEPS.items() if not found.needs]


def results(name: str, budget: str = "default") -> list[Result]:
    return list(SWEEPS[name].build(lab(budget, "fashion" if name in ANYWHERE else "scenes")))


def needed(targets: Iterable[Cell]) -> dict[str, Cell]:
    """Everything that the targets are made from, by key."""
    found: dict[str, Cell] = {}
    pending = list(targets)
    while pending:
        cell = pending.pop()
        if cell.key not in found:
            found[cell.key] = cell
            pending += cell.inputs()
    return found


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweeps_rows_are_told_apart_and_described(name: str) -> None:
    found = results(name)
    record = SWEEPS[name].record(lab())
    rows = [result for result in found if isinstance(result, Row)]
    labels = Counter((row.about.method, row.about.predictor, row.sampler) for row in rows)
    assert labels.most_common(1)[0][1] == 1 if rows else found
    for result in found:
        assert result.about.sweep == name
        assert not result.about.axes or [axis for axis, _ in result.about.axes] == record["axes"]
    assert record["title"]
    assert "\n" not in record["title"]
    assert len(record["description"]) > 40


@pytest.mark.parametrize("name", SWEEPS)
def test_every_row_of_a_family_is_compared_with_its_reference(name: str) -> None:
    found = results(name)
    families = defaultdict(list)
    for row in found:
        if isinstance(row, Row):
            families[row.about.predictor, row.sampler].append(row)
    compared = {cell.row: cell for cell in found if isinstance(cell, Comparison)}
    for (predictor, sampler), rows in families.items():
        references = [row for row in rows if row.about.reference]
        alone = name == "peers" and sampler != "ddim25"  # claims alone compare these
        assert len(references) == (predictor != "none" and not alone)
        for row in rows:
            if references and row is not references[0]:
                comparison = compared.pop(row.key)
                assert comparison.reference == references[0].key
                assert len(comparison.tests) == len(rows) - 1
                assert comparison.tests[comparison.place].ours == row.figures
    assert not compared


def test_rows_of_different_sweeps_share_their_stages() -> None:
    def banks(name: str) -> set[str]:
        return {k for k, cell in needed(results(name)).items() if isinstance(cell, Experts)}

    assert len(banks("methods") & banks("experts")) == 9
    assert len(banks("methods") & banks("supervision")) == 9
    assert len(banks("methods") & banks("peft")) == 3
    shards = [c for c in needed(results("synthetic-size")).values() if isinstance(c, Synthesis)]
    assert sum(shard.count for shard in shards) == 8_000


def test_rows_have_three_seeds_and_measure_nothing_that_a_scale_was_chosen_on() -> None:
    cells = needed(cell for name in ANYWHERE for cell in results(name)).values()
    selecting = {
        score.samples.first_seed
        for cell in cells
        if isinstance(cell, Selection)
        for score in cell.candidates
    }
    spans = sorted(
        {(cell.first_seed, cell.first_seed + cell.count) for cell in cells
         if isinstance(cell, Samples | Synthesis)}
    )  # fmt: skip
    starts = {low: max(high for first, high in spans if first == low) for low, _ in spans}
    assert all(end <= start for (_, end), (start, _) in pairwise(sorted(starts.items())))
    rows = [cell for name in ANYWHERE for cell in results(name) if isinstance(cell, Row)]
    assert all(len(row.seeds) == len(row.figures.scores) == 3 for row in rows)
    measured = {s.samples.first_seed for row in rows for s in row.figures.scores}
    assert not measured & selecting


def test_every_methods_rows_draw_from_the_same_seeds() -> None:
    rows = [row for name in ANYWHERE for row in results(name) if isinstance(row, Row)]
    # Rows of the peers are points of curves, and the unguided row is held against these.
    peers = [row for row in rows if row.about.sweep == "peers"]
    assert {type(row) for row in peers} == {Row, PeerRow}
    for alike in (peers, [row for row in rows if row.about.sweep != "peers"]):
        seeds = {tuple(score.samples.first_seed for score in row.figures.scores) for row in alike}
        assert len(seeds) == 1


def test_total_training_is_the_same_for_any_number_of_experts() -> None:
    banks = [c for c in needed(results("experts")).values() if isinstance(c, Experts)]
    assert {len(bank.ranges) for bank in banks} == {1, 2, 3, 5, 8, 10}  # type: ignore[arg-type]
    assert {bank.training.steps for bank in banks} == {BUDGETS["default"].steps}


def test_the_headline_is_what_the_default_run_makes() -> None:
    assert HEADLINE == ("methods", "experts", "peft", "supervision", "memory", "throughput")


def test_a_new_sweep_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example in the module's docstring."""
    monkeypatch.setattr("ablations.sweeps.registry.SWEEPS", {})

    @sweep("learning-rate", axes={"rate": "log"}, figure="lines")
    def learning_rate(lab: Lab) -> Iterator[Result]:
        """Learning rate of PPAP."""
        for rate in (3e-3, 1e-2, 3e-2):
            recipe = replace(PPAP, tuning=replace(LORA, learning_rate=rate))
            yield from lab.row(f"{rate:g}", recipe, reference=rate == 1e-2, rate=rate)

    made = Sweep("learning-rate", learning_rate, {"rate": "log"}, ("accuracy",), "lines", False)
    found = list(made.build(lab()))
    assert [type(cell).__name__ for cell in found] == ["Row"] * 3 + ["Comparison"] * 2
    assert made.record(lab())["title"] == "Learning rate of PPAP"


def of_two(
    values: Iterable[Any],
    scale: Any = "linear",
    label: str = "v {}",
    samples: tuple[tuple[float, int], ...] = (),
    **options: Any,
) -> Sweep:
    """A sweep of a row for each value."""

    def function(lab: Lab) -> Iterator[Result]:
        for value in values:
            sampling = Sampling(samples=dict(samples).get(value))
            yield from lab.row(
                label.format(value), NAIVE, sampling=sampling, value=value, **options,
                reference=bool(samples) and value == 1,
            )  # fmt: skip

    return Sweep("two", function, {"value": scale}, ("accuracy",), "lines", False)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (of_two((0.0, 1.0), "log"), "row 'v 0.0' of sweep two has 0.0 on the axis value, .* log"),
        (of_two((1, "a")), "has 'a' on the axis value, whose scale is linear"),
        (of_two((1, float("nan"))), "has nan on the axis value"),
        (of_two((1, 2), samples=((1, 10), (2, 20))), "'v 2', of 20 samples, with 'v 1', of 10"),
        (
            of_two((1, 2), label="same", measured=Measured(pictures=True)),
            "pictures.* of several rows 'same' of the predictor resnet",
        ),
        (of_two((1, 2), label="same", measured=Measured(curve=True)), "several rows 'same'"),
    ],
)
def test_what_could_not_be_recorded_or_compared_is_refused_before_it_is_computed(
    made: Sweep, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        list(made.build(lab("smoke")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: replace(PPAP, ranges="logsnr"),
            "ranges cannot be 'logsnr'; choose from .*log-SNR",
        ),
        (lambda: replace(PPAP, supervision="shufled"), "supervision cannot be 'shufled'; choose"),
        (lambda: replace(PPAP, start="prev"), "start cannot be 'prev'; choose from previous"),
        (lambda: replace(PPAP, experts=-1), "a number of experts, got -1"),
        (lambda: replace(PPAP, experts=2.0), "a number of experts, got 2.0"),
        (lambda: Sampling(scale="usal"), "scale cannot be 'usal'; give a number"),  # type: ignore[arg-type]
        (lambda: Sampling(scale=float("nan")), "scale cannot be nan"),
        (lambda: Sampling(samples=3), "draws 4 samples a seed or more, got 3"),
        (
            lambda: list(lab().row("a", NAIVE, predictor="resnett")),
            "setting fashion has no predictor 'resnett'; choose from resnet, vit",
        ),
    ],
)
def test_a_word_or_number_that_means_nothing_is_refused(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(("images", "looked_at"), [(4, 1), (9, 1), (10, 2), (1000, 200)])
def test_gradients_are_held_against_each_other_on_an_image_or_more(
    images: int, looked_at: int
) -> None:
    few = replace(lab(), budget=replace(BUDGETS["smoke"], noisy_images=images))
    (row,) = few.row("naive", NAIVE, measured=Measured(gradients=True))
    assert isinstance(row, Row)
    assert {cell.count for cell in row.gradients} == {looked_at}


def test_values_on_an_axis_may_be_numpys() -> None:
    found = list(of_two(np.arange(1, 3)).build(lab("smoke")))
    assert [cell.about.axes for cell in found] == [(("value", 1),), (("value", 2),)]
    assert [cell.key for cell in found] == [c.key for c in of_two((1, 2)).build(lab("smoke"))]
    assert json.dumps([cell.about.facts() for cell in found])
    assert list(of_two((1, 2), label="same").build(lab("smoke")))  # told apart by the axis
    assert lab().about("a", PPAP, reference=np.bool_(True)).reference is True  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [3.0, 3, np.int64(3), np.float32(3)])
def test_a_scale_that_is_given_guides_whatever_number_it_is(scale: Any) -> None:
    given = lab("smoke").row("naive", NAIVE, sampling=Sampling(scale=scale))
    (row,) = (cell for cell in given if isinstance(cell, Row))
    (guidance,) = row.figures.scores[0].samples.guidance
    assert guidance.scale == 3
    assert type(guidance.scale) is float


@pytest.mark.parametrize("predictor", ["resnet", "vit"])
def test_a_bank_is_expected_to_take_no_less_than_its_weights(predictor: str) -> None:
    banks = [cell for cell in needed(results("methods")).values() if isinstance(cell, Experts)]
    own = [bank for bank in banks if bank.predictor == predictor]
    assert {bank.count for bank in own} == {1, 5}
    weights = (WEIGHTS / "fashion" / f"{predictor}.safetensors").stat().st_size
    assert all(weights * bank.count <= bank.size() <= 1.2 * weights * bank.count for bank in own)


def test_the_quirks_of_a_network_that_nothing_was_released_for_are_tried_one_by_one() -> None:
    found = SWEEPS["published-quirks"].build(lab("rehearsal", "imagenet256-rehearsal"))
    arms = {result.about.method for result in found}
    assert {"corrected", "boundaries to the lower expert"} < arms
    assert "as released" not in arms


@pytest.mark.parametrize(
    ("budget", "setting"), [("smoke", "fashion"), ("rehearsal", "imagenet256-rehearsal")]
)
def test_every_expert_has_a_step_of_its_own_at_the_smallest_budgets(
    budget: str, setting: str
) -> None:
    found = SWEEPS["published-quirks"].build(lab(budget, setting))
    banks = [cell for cell in needed(found).values() if isinstance(cell, Experts)]
    assert {"previous", "base", "shared"} <= {bank.training.start for bank in banks}
    for bank in banks:
        assert isinstance(bank.ranges, NoiseRanges)
        assert all(stage.steps > 0 for stage in stages(bank.ranges, bank.training))
