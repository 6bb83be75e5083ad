"""The check of training-free steps, on recordings of which every number is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.__main__ import main
from tests.golden.check import Golden, check, load, standard_normal
from tests.golden.training_free import FIGURE, Inputs

SHAPE = (2, 3, 4, 4)
LEVELS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def record(path: Path, method: str, lowest: int = 0, named: str | None = None) -> Path:
    """MPGD's published loop, or FreeDoM's of 3 repetitions, at a strength of 0 and an eta of 1."""
    timesteps = np.arange(lowest, 1000, 200)[::-1]
    levels = LEVELS[timesteps].astype(np.float32)
    after = np.append(levels[1:], 1.0)
    figures = {}
    for step in (0, 4):
        tag, draws = f"training_free/{named or method}/1/{step}", 0

        def noise(tag: str = tag) -> np.ndarray:
            nonlocal draws
            draws += 1
            return standard_normal(f"{tag}/noise{draws}", SHAPE)

        level, ahead = float(levels[step]), float(after[step])
        sigma = math.sqrt((1 - ahead) / (1 - level) * (1 - level / ahead))
        x = standard_normal(f"{tag}/x", SHAPE).astype(np.float32).astype(np.float64)
        for _ in range(3 if method == "freedom" else 1):
            epsilon = np.tanh(0.9 * x + timesteps[step] / 1000)
            x_0 = (x - math.sqrt(1 - level) * epsilon) / math.sqrt(level)
            if method == "mpgd":
                x_0 = x_0.clip(-1, 1)
            x_next = math.sqrt(ahead) * x_0 + math.sqrt(1 - ahead - sigma**2) * epsilon
            if timesteps[step] > 0:
                x_next = x_next + sigma * noise()
            if method == "freedom":
                kept = level / ahead
                x = math.sqrt(kept) * x_next + math.sqrt(1 - kept) * noise()
        figures[f"eta1_step{step}"] = x_next.astype(np.float32)
        figures[f"eta1_step{step}_draws"] = np.array(draws)
    written = json.dumps({"method": method, "guidance_strength": 0.0, "recur_steps": 3})
    np.savez(
        path,
        config=np.array(written),
        timesteps=timesteps,
        alpha_bar=levels,
        alpha_bar_prev=after,
        **figures,
    )
    return path


@pytest.mark.parametrize("lowest", [0, 1, 199])
@pytest.mark.parametrize("method", ["freedom", "mpgd"])
def test_published_steps_of_strength_0_and_of_any_spacing_agree(
    method: str, lowest: int, tmp_path: Path
) -> None:
    path = record(tmp_path / f"training_free_{method}.npz", method, lowest)
    outcome = check(path)
    assert outcome.agrees, outcome.refusal or outcome.errors
    assert outcome.worst[1] < 2e-6


@pytest.mark.parametrize("named", ["mpgd", "mpgd_of_eta_1"])
def test_draws_are_named_after_the_method_or_the_file(named: str, tmp_path: Path) -> None:
    path = record(tmp_path / "training_free_mpgd_of_eta_1.npz", "mpgd", named=named)
    assert check(path).agrees
    other = record(tmp_path / "training_free_mpgd_of_eta_0.npz", "mpgd", named="mpgd_of_eta_1")
    assert not check(other).agrees


def test_an_lgd_file_without_its_number_of_draws_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "training_free_lgd.npz", "lgd")
    assert main([str(tmp_path)]) == 2
    assert "its config lacks 'guidance_name'" in capsys.readouterr().err


def test_everything_that_was_recorded_in_float32_is_moved_by_its_last_bits(tmp_path: Path) -> None:
    golden = load(record(tmp_path / "training_free_freedom.npz", "freedom"))
    exact, moved = _inputs(golden, 0), _inputs(golden, 1)
    pairs = [(exact.x(), moved.x()), (exact(), moved())]
    levels = (torch.from_numpy(own.schedule().alphas_cumprod).float() for own in (exact, moved))
    for one, other in (*pairs, tuple(levels)):
        assert not torch.equal(one, other)
        torch.testing.assert_close(one, other, rtol=1.3e-7, atol=0)


def _inputs(golden: Golden, nudge: int) -> Inputs:
    match = FIGURE.fullmatch("eta1_step0")
    assert match is not None
    return Inputs(golden, "freedom", match, torch.float32, nudge)
