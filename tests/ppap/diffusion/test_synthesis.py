"""Synthesis: images of the unguided model, at once, in parts, or into a folder that can wait."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from ppap.diffusion import synthesis
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.diffusers_scheduler import DiffusersSampler
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import cosine_schedule, linear_schedule
from ppap.diffusion.synthesis import synthesize
from ppap.experts.adapters.adapter import ppap_adapter
from ppap.experts.bank import ExpertBank
from ppap.experts.training import Training
from ppap.experts.transfer import transfer
from ppap.files.checkpoints import CheckpointError
from ppap.files.shards import ImageShards, claimed_shard, write_shard
from tests.ppap.networks import SHAPE, tiny_denoiser, tiny_predictor
from tests.ppap.shared_synthesis import in_shards

SHARDED: dict[str, Any] = {"sampler": DDIM(5), "first_seed": 10, "batch": 2, "shard": 4}


def in_folder(folder: Path, count: int = 10, **options: Any) -> ImageShards:
    found = synthesize(tiny_denoiser(), count, folder=folder, **SHARDED | options)
    assert isinstance(found, ImageShards)
    return found


def test_synthesis_in_parts_is_synthesis_at_once() -> None:
    whole = synthesize(tiny_denoiser(), 6, DDIM(5), first_seed=10)
    parts = [synthesize(tiny_denoiser(), 3, DDIM(5), first_seed=s, batch=2) for s in (10, 13)]
    assert whole.dtype == torch.uint8
    assert (whole.int() - torch.cat(parts).int()).abs().max() <= 1


def test_a_folder_holds_what_would_be_in_memory(tmp_path: Path) -> None:
    found = in_folder(tmp_path / "synthetic")
    whole = synthesize(tiny_denoiser(), 10, DDIM(5), 10, batch=2)
    assert found.shape == (10, *SHAPE)
    assert torch.equal(found[:], whole)
    names = sorted(path.name for path in (tmp_path / "synthetic").iterdir())
    assert names == [
        "00000000-00000004.npy",
        "00000004-00000008.npy",
        "00000008-00000010.npy",
        "images.json",
    ]


def test_a_folder_holds_decoded_images_of_a_denoiser_of_latents(tmp_path: Path) -> None:
    def decode(x_0: Tensor) -> Tensor:
        return x_0.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :1]

    latents = tiny_denoiser()
    latents.decoder = decode
    whole = synthesize(latents, 5, DDIM(3))
    _, height, width = SHAPE
    assert whole.shape[1:] == latents.image_shape() == (1, 2 * height, 2 * width) != SHAPE
    for _ in range(2):  # what is there is found whole
        found = synthesize(latents, 5, DDIM(3), folder=tmp_path / "decoded", shard=2)
        assert found.shape == whole.shape
        assert torch.equal(found[:], whole)
    assert sample(latents, 0).shape == (0, *latents.image_shape())


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    given = {"sampler": DDIM(np.int64(5)), "first_seed": np.int64(10), "shard": np.int64(4)}
    assert torch.equal(in_folder(tmp_path / "a", **given)[:], in_folder(tmp_path / "a")[:])
    whole = tiny_denoiser()
    again: Any = Denoiser(whole.network, whole.schedule, np.array(SHAPE))  # type: ignore[arg-type]
    assert again.shape == whole.shape
    assert torch.equal(synthesize(again, 2, folder=tmp_path / "b")[:], synthesize(again, 2))


def test_an_interrupted_synthesis_goes_on_to_the_same_images(tmp_path: Path) -> None:
    def interrupt(done: int, total: int, /, **facts: float) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_folder(tmp_path / "cut", progress=interrupt)
    shard = tmp_path / "cut" / "00000000-00000004.npy"
    assert sorted(path.name for path in (tmp_path / "cut").glob("*.npy")) == [shard.name]
    before = shard.stat().st_mtime_ns

    calls = 0

    def count_calls(done: int, total: int, /, **facts: float) -> None:
        nonlocal calls
        calls += 1
        assert total == 10
        assert done == 4 + 2 * calls  # what was there is not drawn again

    resumed = in_folder(tmp_path / "cut", progress=count_calls)
    assert calls == 3
    assert shard.stat().st_mtime_ns == before
    assert torch.equal(resumed[:], in_folder(tmp_path / "uncut")[:])


def test_a_larger_synthesis_takes_over_the_shards_of_a_smaller(tmp_path: Path) -> None:
    in_folder(tmp_path / "grown", 6)
    assert torch.equal(in_folder(tmp_path / "grown")[:], in_folder(tmp_path / "at-once")[:])
    assert torch.equal(in_folder(tmp_path / "grown", 6)[:], in_folder(tmp_path / "at-once")[:6])


def test_processes_that_share_a_folder_share_the_work(tmp_path: Path) -> None:
    shared, drawn = tmp_path / "shared", tmp_path / "drawn"
    drawn.mkdir()
    command = [sys.executable, "-m", "tests.ppap.shared_synthesis", str(shared), str(drawn)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    places = [line for file in drawn.iterdir() for line in file.read_text().split()]
    assert sorted(places) == sorted(set(places)) == ["0", "4", "8"]
    assert torch.equal(in_shards(shared)[:], in_shards(tmp_path / "alone")[:])
    assert not list(shared.glob("*.npy.lock"))


def test_a_shard_that_another_process_makes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = in_folder(tmp_path / "whole")
    folder = tmp_path / "folder"
    in_folder(folder, 4)
    other = claimed_shard(folder, (4, 8))
    assert other.__enter__()
    waits = []

    def finish(seconds: float) -> None:
        waits.append(seconds)
        write_shard(folder, (4, 8), whole[4:8])
        other.__exit__(None, None, None)

    monkeypatch.setattr(synthesis.time, "sleep", finish)
    assert torch.equal(in_folder(folder)[:], whole[:])
    assert len(waits) == 1


def test_a_shard_of_which_a_crash_left_a_part_is_drawn_again(tmp_path: Path) -> None:
    whole = in_folder(tmp_path)[:]
    (tmp_path / "00000000-00000004.npy").write_bytes(b"")
    shard = tmp_path / "00000004-00000008.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert torch.equal(in_folder(tmp_path)[:], whole)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (-1, {}, "the number of images must be at least 0, got -1"),
        (4, {"first_seed": 2**32 - 3}, r"4 images from seed .* run from 0 to 2\^32 - 1"),
        (4, {"first_seed": -1}, "first_seed must be at least 0, got -1"),
    ],
)
def test_seeds_that_there_are_not_are_told_before_anything_is_drawn(
    count: int, options: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        in_folder(tmp_path / "new", count, **options)
    assert not (tmp_path / "new").exists()


def test_a_folder_knows_the_scheduler_of_diffusers_that_drew_it(tmp_path: Path) -> None:
    sampler = DiffusersSampler(DDIMScheduler(), 2)
    in_folder(tmp_path, 2, sampler=sampler)
    in_folder(tmp_path, 2, sampler=sampler)
    other = DiffusersSampler(DDIMScheduler(clip_sample=False), 2)
    with pytest.raises(CheckpointError, match="sampler"):
        in_folder(tmp_path, 2, sampler=other)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # diffusers'
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, list])
def test_a_folder_knows_betas_whatever_holds_them(kind: Any, tmp_path: Path) -> None:
    betas = linear_schedule().betas
    drawn = DiffusersSampler(DDIMScheduler(trained_betas=kind(betas)), 2)
    in_folder(tmp_path, 2, sampler=drawn)
    again = DiffusersSampler(DDIMScheduler(trained_betas=betas.tolist()), 2)
    in_folder(tmp_path, 2, sampler=again)
    moved = DiffusersSampler(DDIMScheduler(trained_betas=kind(betas * (1 + 1e-5))), 2)
    with pytest.raises(CheckpointError, match="sampler"):
        in_folder(tmp_path, 2, sampler=moved)


def other_schedule(denoiser: Denoiser) -> Denoiser:
    return Denoiser(denoiser.network, cosine_schedule(), SHAPE)


def other_weights(denoiser: Denoiser) -> Denoiser:
    return Denoiser(torch.nn.Conv2d(3, 3, 1), linear_schedule(), SHAPE)


def other_buffers(denoiser: Denoiser) -> Denoiser:
    told = Denoiser(lambda x, t, y: denoiser.network(x, t), denoiser.schedule, SHAPE)
    return told.with_conditions(y=3)


def other_target(denoiser: Denoiser) -> Denoiser:
    return Denoiser(denoiser.network, denoiser.schedule, SHAPE, target="v")


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (other_schedule, {}, "schedule"),
        (other_weights, {}, "weights"),
        (other_buffers, {}, "weights"),
        (other_target, {}, "target None, not 'v'"),
        (None, {"sampler": replace(SHARDED["sampler"], eta=1.0)}, "sampler"),
        (None, {"first_seed": 0}, "first_seed 10, not 0"),
        (None, {"shard": 5}, "shard 4, not 5"),
    ],
)
def test_a_folder_of_other_images_is_refused(
    tmp_path: Path, change: Any, options: dict[str, Any], said: str
) -> None:
    in_folder(tmp_path, 2)
    written = {path: path.read_bytes() for path in tmp_path.iterdir()}
    denoiser = change(tiny_denoiser()) if change else tiny_denoiser()
    with pytest.raises(CheckpointError, match=said):
        synthesize(denoiser, 2, folder=tmp_path, **SHARDED | options)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_the_manifest_says_what_decides_the_images(tmp_path: Path) -> None:
    in_folder(tmp_path, 2)
    manifest = json.loads((tmp_path / "images.json").read_text())
    assert manifest["shape"] == list(SHAPE)
    assert manifest["sampler"] == {"kind": "DDIM", "steps": 5, "eta": 0.0, "clip": True}
    assert (manifest["first_seed"], manifest["shard"]) == (10, 4)


def test_experts_train_on_a_folder_as_on_a_tensor(tmp_path: Path) -> None:
    training = Training(steps=6, batch=8, learning_rate=1e-2)

    def state(images: Tensor | ImageShards) -> Tensor:
        bank = ExpertBank(tiny_predictor(), 2, ppap_adapter(2))
        transfer(bank, tiny_denoiser(), images, training=training)
        return torch.cat([parameter.flatten() for parameter in bank.experts.parameters()])

    stored = in_folder(tmp_path)
    assert torch.equal(state(stored), state(stored[:]))


def test_a_shard_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images per shard must be at least 1"):
        in_folder(tmp_path, shard=0)
