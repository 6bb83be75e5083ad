"""Public settings from end to end, on seeded weights in the published formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablations.__main__ import main
from ablations.cells import samples
from ablations.cells.guidance import Guidance, Model
from ablations.cells.results import Row
from ablations.cells.samples import Samples
from ablations.cells.setup import Setup
from ablations.errors import UserError
from ablations.runs import Options
from ablations.settings.catalogue import BUDGETS, load_setting
from ablations.settings.public import PUBLIC
from ablations.settings.rehearsal import seeded_models
from ablations.sweeps.recipes import PPAP
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.sampling import sample
from ppap.experts.adapters.adapter import ppap_adapter
from ppap.files.images import from_uint8, to_uint8
from reports.published import published


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder for the seeded weights, away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        load_setting.cache_clear()
        yield
    load_setting.cache_clear()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_setting_is_rehearsed_from_end_to_end(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"{name}-rehearsal"
    where = ["--store", str(tmp_path / "store"), "--output", str(folder), "--workers", "2"]
    assert main(["run", "methods", "--setting", name, "--rehearse", *where]) == 0, (
        capsys.readouterr()
    )
    lines = (folder / "records.jsonl").read_text().splitlines()
    rows = [record for record in map(json.loads, lines) if record["kind"] == "row"]
    public = PUBLIC[name]
    methods = {"naive", "single", "multi-experts", "ppap"}
    found = {(row["method"], row["predictor"]) for row in rows}
    assert found == {("unguided", "none")} | {
        (method, predictor) for method in methods for predictor in public.predictors
    } | {(method, method) for method in public.noisy}
    assert not any(record["kind"] == "failure" for record in map(json.loads, lines))
    for row in rows:
        assert np.isfinite([row["fid"], row["inception_score"], row["precision"]]).all()
        assert row["sfid"] > 0
        assert row["setting"] == f"{name}-rehearsal"
        assert row["budget"] == "rehearsal"
    assert "Rehearsal on seeded weights: not a result" in (folder / "methods.md").read_text()
    near = [figure for figure in published() if name in figure.settings]
    assert all(figure.url in (folder / "methods.md").read_text() for figure in near)
    assert (folder / "methods.csv").read_text().startswith("rehearsal,")
    assert "not a result" in (folder / "methods.tex").read_text()
    assert "REHEARSAL" in (folder / "methods.svg").read_text()
    grids = np.load(folder / "grids.npz")
    size = 32 if public.upsampler or name == "cifar10" else 16
    assert {grids[key].shape[2:] for key in grids.files} == {(size, size, 3)}
    adapters = {row["method"]: row["adapter"] for row in rows}
    assert adapters["ppap"] == "LoRA, bias, norm"
    assert all(row["supervision"] == "labelled" for row in rows if row["method"] in public.noisy)


def test_the_papers_configuration_is_the_default_of_public_settings() -> None:
    lab = Options(("methods",), "imagenet256-rehearsal").lab()
    budget = BUDGETS["paper"]
    assert (budget.synthetic, budget.steps, budget.batch) == (500_000, 300_000, 256)
    assert (budget.samples, budget.scales) == (10_000, (7.5,))
    bank = replace(lab, budget=budget).experts(PPAP, "resnet50", 0)
    assert bank.training == replace(bank.training, steps=300_000, batch=256, learning_rate=1e-4)
    assert bank.training.weight_decay == 0.05
    assert bank.adapter == ppap_adapter(16, 8.0)
    assert bank.ranges.boundaries == (0, 200, 400, 600, 800, 1000)
    assert lab.setting.mirrored
    row = next(iter(lab.row("ppap", PPAP)))
    assert isinstance(row, Row)
    (part,) = row.figures.scores[0].samples.guidance
    assert part.scale == 7.5


def test_a_setting_without_its_files_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PPAP_MODELS", str(tmp_path))
    assert main(["run", "methods", "--setting", "imagenet256", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "256x256_diffusion_uncond.pt" in told
    assert "https://openaipublic.blob.core.windows.net" in told
    assert told.count("\n") == 1


def test_only_public_settings_are_rehearsed() -> None:
    with pytest.raises(UserError, match="is for a public setting"):
        Options(("methods",), "fashion", rehearse=True)


def test_many_samples_are_the_same_in_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup.of(load_setting("imagenet256-rehearsal"))
    guidance = (Guidance(Model("resnet50"), 7.5),)
    whole = Samples(setup, DDIM(5), guidance, 100, 16)
    together = whole.compute(lambda cell: pytest.fail("it needs nothing"))
    monkeypatch.setattr(samples, "MOST_AT_ONCE", 10)
    monkeypatch.setattr(samples, "SHARD", 6)
    shards = whole.shards()
    assert list(whole.inputs()) == list(shards)
    assert [(shard.first_seed, shard.count, shard.place) for shard in shards] == [
        (100, 6, 0), (106, 6, 6), (112, 4, 12),
    ]  # fmt: skip
    apart = whole.compute(lambda cell: cell.compute(lambda cell: pytest.fail("nor does it")))
    assert apart.meta == together.meta
    ours, theirs = (made.arrays["images"].astype(int) for made in (apart, together))
    assert abs(ours - theirs).max() <= 1


def test_a_second_stage_makes_larger_images_of_the_first() -> None:
    setting = load_setting("glide-rehearsal")
    assert setting.upsample is not None
    small = sample(setting.denoiser(), [3, 4], None, DDIM(5))
    large = setting.upsample(small, [3, 4])
    assert large.shape == (2, 3, 32, 32)
    again = setting.upsample(from_uint8(to_uint8(small[1:])), [4])
    torch.testing.assert_close(again[0], large[1], atol=1e-3, rtol=1e-3)


def test_a_rehearsal_that_is_there_is_not_written_again() -> None:
    folder = seeded_models("glide").folder
    before = folder.stat().st_mtime_ns
    assert seeded_models("glide").folder.stat().st_mtime_ns == before
