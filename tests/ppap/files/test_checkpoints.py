"""Loading is strict, weights-only, and says what is wrong."""

from __future__ import annotations

import os
import pickle
import random
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from ppap.files.checkpoints import CheckpointError, load_state, load_weights, save_weights
from ppap.files.hub import read_settings

Wrap = Callable[[dict[str, Tensor]], Any]


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


class Normed(nn.Module):
    """Batch norms, a nested layer, and a name that begins like a wrapper's."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 2)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state},
        lambda state: {"model": state, "epoch": 3, "args": Namespace(lr=0.1), "optimizer": {}},
        lambda state: {"net": {"state_dict": state}, "optimizer": {"state": {0: {}}}},
        lambda state: {"state_dict": prefixed("model.", state), "callbacks": {}},
        lambda state: prefixed("module.", state),
        lambda state: prefixed("_orig_mod.", state),
        lambda state: {"state_dict": prefixed("module._orig_mod.", state)},
        lambda state: {key.replace("model.", "model._orig_mod."): v for key, v in state.items()},
        lambda state: prefixed("module.", state) | {"n_averaged": torch.tensor(7)},
        lambda state: prefixed("network.backbone.", state),
        lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    ],
    ids=["model", "training", "nested", "lightning", "parallel", "compiled", "both", "in part",
         "averaged", "own", "old"],
)  # fmt: skip
def test_what_training_wraps_weights_in_comes_off(wrap: Wrap, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = Normed(), Normed()
    torch.save(wrap(source.state_dict()), tmp_path / "a.pth")
    load_weights(target, tmp_path / "a.pth")
    for key, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[key])


@pytest.mark.parametrize(
    ("wrap", "reason"),
    [
        (
            lambda state: {"model": state, "model_ema": state},
            r'several networks: model and model_ema.*torch\.load\("a\.pth"\)\["model_ema"\]',
        ),
        (
            lambda state: {"teacher": {"net": state}, "student": {"net": state}},
            r'teacher\.net and student\.net.*\["student"\]\["net"\]',
        ),
        (lambda state: {"weights": list(state.values()), "step": 3}, "a dict of weights, step"),
        (lambda state: list(state.values()), "but a list;"),
        (lambda state: {}, "but a dict"),
    ],
    ids=["average", "two", "list inside", "list", "empty"],
)
def test_a_file_of_several_networks_or_none_says_what_it_holds(
    wrap: Wrap, reason: str, tmp_path: Path
) -> None:
    torch.save(wrap(Normed().state_dict()), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=reason):
        load_state(tmp_path / "a.pth")


def test_a_whole_module_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save(Normed(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"more than weights \(a \S*Normed\)") as caught:
        load_state(tmp_path / "a.pth")
    assert "\x1b" not in str(caught.value)


def test_a_prefix_that_is_the_networks_own_stays(tmp_path: Path) -> None:
    source = nn.Sequential(OrderedDict(model=nn.Linear(2, 2)))
    target = nn.Sequential(OrderedDict(model=nn.Linear(2, 2)))
    save_weights(source.state_dict(), tmp_path / "a.safetensors")
    load_weights(target, tmp_path / "a.safetensors")
    assert torch.equal(source[0].weight, target[0].weight)


def test_settings_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"name": "naïve"}', encoding="utf-8-sig")
    assert read_settings(tmp_path / "config.json") == {"name": "naïve"}


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: (10 * w).to(torch.int8), "holds integers for 0.weight"),
        (lambda w: w > 0, "holds integers for 0.weight"),
        (lambda w: w.index_fill(0, torch.tensor([1]), float("nan")), "holds NaN in 0.weight"),
    ],
)
def test_what_is_no_weight_is_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], said: str
) -> None:
    state = network().state_dict()
    save_weights(state | {"0.weight": change(state["0.weight"])}, tmp_path / "a.safetensors")
    target = network()
    before = target.state_dict()["0.weight"].clone()
    with pytest.raises(CheckpointError, match=said):
        load_weights(target, tmp_path / "a.safetensors")
    assert torch.equal(before, target.state_dict()["0.weight"])


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("change", [Tensor.to_sparse, lambda w: w.to("meta")])
def test_weights_that_are_sparse_or_have_no_values_are_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor]
) -> None:
    state = network().state_dict()
    torch.save(state | {"0.weight": change(state["0.weight"])}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"sparse or have no values for 0\.weight"):
        load_weights(network(), tmp_path / "a.pth")


def test_a_weight_of_several_names_is_one(tmp_path: Path) -> None:
    """The last name's would have been taken for all of them."""

    def tied() -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        layers[1].weight = layers[0].weight
        return layers

    source, target = tied(), tied()
    nn.init.normal_(source[0].weight)
    save_model(source, str(tmp_path / "one.safetensors"))  # which writes one of the names
    load_weights(target, tmp_path / "one.safetensors")
    assert torch.equal(target[0].weight, source[0].weight)
    save_weights(source.state_dict(), tmp_path / "both.safetensors")
    load_weights(tied(), tmp_path / "both.safetensors")
    apart = {"0.weight": torch.ones(3, 3), "1.weight": torch.zeros(3, 3)}
    save_weights(apart, tmp_path / "apart.safetensors")
    with pytest.raises(CheckpointError, match=r"different weights for 0\.weight and 1\.weight"):
        load_weights(target, tmp_path / "apart.safetensors")
    assert torch.equal(target[0].weight, source[0].weight)


def test_an_infinite_mask_and_weights_of_eight_bits_are_loaded(tmp_path: Path) -> None:
    state = network().state_dict()
    state["0.bias"] = torch.full((3,), -torch.inf)
    state["1.weight"] = state["1.weight"].to(torch.float8_e4m3fn)
    save_weights(state, tmp_path / "a.safetensors")
    load_weights(network(), tmp_path / "a.safetensors")
