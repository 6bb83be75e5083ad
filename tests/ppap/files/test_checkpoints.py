"""Loading is strict, weights-only, and says what is wrong."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from ppap.files.checkpoints import CheckpointError, load_state, load_weights, save_weights


def network(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "wrapped.pt"])
def test_weights_round_trip(tmp_path: Path, name: str) -> None:
    source, target = network(), network()
    if name.endswith(".safetensors"):
        save_weights(source.state_dict(), tmp_path / name)
    else:
        state = source.state_dict()
        torch.save({"state_dict": state} if "wrapped" in name else state, tmp_path / name)
    load_weights(target, tmp_path / name)
    for key, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[key])


def test_half_precision_widens(tmp_path: Path) -> None:
    save_weights(network().state_dict(), tmp_path / "half.safetensors", torch.float16)
    assert load_state(tmp_path / "half.safetensors")["0.weight"].dtype == torch.float16
    target = network()
    load_weights(target, tmp_path / "half.safetensors")
    assert target.state_dict()["0.weight"].dtype == torch.float32


def test_a_wrong_file_is_refused_whole(tmp_path: Path) -> None:
    state = network(width=4).state_dict()
    state["extra"] = state.pop("1.bias")
    save_weights(state, tmp_path / "wrong.safetensors")
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(target, tmp_path / "wrong.safetensors")
    message = str(caught.value)
    assert "missing 1.bias" in message
    assert "unexpected extra" in message
    assert "0.weight (4, 2) instead of (3, 2)" in message
    assert "\n" not in message
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"weight": Hostile(marker)}, tmp_path / "new.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"weight": Hostile(marker)}, protocol=2))
    for name in ("new.pt", "old.pt"):
        with pytest.raises(CheckpointError, match="more than weights"):
            load_state(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(network().state_dict(), path)
    else:
        save_weights(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_whatever_is_damaged_is_refused_in_one_line_or_still_holds_tensors(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    state = network().state_dict()
    if kind == "safetensors":
        save_weights(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    chance = random.Random(0)
    messages = []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            loaded = load_state(path)
        except CheckpointError as error:
            messages.append(str(error))
        else:
            assert all(isinstance(value, torch.Tensor) for value in loaded.values())
    assert len(messages) > 50
    assert not any("\n" in message for message in messages)


def test_a_missing_file_and_one_without_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_state(tmp_path / "none.pt")
    for content in ({"epoch": 3}, {0: torch.ones(2)}, torch.ones(2)):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match="state dict"):
            load_state(tmp_path / "other.pt")
