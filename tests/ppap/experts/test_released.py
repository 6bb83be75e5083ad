"""Released checkpoints, against layers written out here."""

from __future__ import annotations

import copy
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ppap.experts.adapters.adapter import Adapter, ppap_adapter
from ppap.experts.adapters.parts import Full, Norms
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.experts.released import load_released, released_state, save_released
from ppap.files.checkpoints import CheckpointError
from ppap.predictors.predictor import Predictor
from tests.ppap.networks import images, tiny_predictor

from .adapters.test_peft import Network

KEYS = Path(__file__).parents[1] / "keys"


RANK, ALPHA, EXPERTS = 2, 1.0, 3


class Wrapped(nn.Module):
    """A layer with loralib's update: scaled in convolutions, and in linear layers not."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        if isinstance(layer, nn.Conv2d):
            self.conv, kernel = layer, layer.kernel_size[0]
            outputs, inputs = layer.out_channels, layer.in_channels
        else:
            self.linear, kernel = layer, 1
            outputs, inputs = layer.out_features, layer.in_features

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.3 * torch.randn(shape, generator=generator))

        self.lora_A = drawn(RANK * kernel, inputs * kernel)
        self.lora_B = drawn(outputs * kernel, RANK * kernel)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "linear"):
            return self.linear(x) + x @ self.lora_A.T @ self.lora_B.T
        update = (self.lora_B @ self.lora_A).view(self.conv.weight.shape) * ALPHA / RANK
        layer = self.conv
        return F.conv2d(x, layer.weight + update, layer.bias, layer.stride, layer.padding)


def transformer() -> Predictor:
    torch.manual_seed(2)
    network = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=5
    )
    return Predictor(network.eval(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


MAKERS: dict[str, Callable[[], Predictor]] = {"resnet": tiny_predictor, "deit": transformer}


def trained(kind: str, number: int) -> nn.Module:
    """The network as the released code would train it."""
    network = copy.deepcopy(MAKERS[kind]().network)
    generator = torch.Generator().manual_seed(number)
    targets = ["conv1", "layer1.conv1"]
    if kind == "deit":
        targets = [f"blocks.{block}.attn.{part}" for block in (0, 1) for part in ("qkv", "proj")]
    for name in targets:
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        network.set_submodule(name, Wrapped(layer, generator))
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        moved = ("bias" in name and "fc.bias" not in name) or "bn" in name or "running" in name
        if "lora_" not in name and moved and value.is_floating_point():
            value.data.add_(torch.rand(value.shape, generator=generator), alpha=0.3)
    return network.eval()


def written(kind: str, folder: Path) -> list[nn.Module]:
    """Files in the released layout."""
    prefix = {"resnet": "resnet.", "deit": "deit.classifier."}[kind]
    networks = [trained(kind, number) for number in range(EXPERTS)]
    for number, network in enumerate(networks):
        state = {prefix + key: value for key, value in network.state_dict().items()}
        torch.save(state, folder / f"{number}_max{EXPERTS}.ckpt")
    return networks


@pytest.mark.parametrize("kind", MAKERS)
def test_released_experts_predict_as_they_were_trained(kind: str, tmp_path: Path) -> None:
    networks = written(kind, tmp_path)
    bank = load_released(tmp_path, MAKERS[kind](), RANK, ALPHA)
    x = images(4)
    # The released ResNets see images in [-1, 1]; DeiT's wrapper normalises.
    prepared = bank.predictor.prepare(x)
    shown = {"resnet": x, "deit": prepared}[kind]
    for number, network in enumerate(networks):
        torch.testing.assert_close(bank.predict(x, number), network(shown), atol=1e-5, rtol=1e-5)
    assert bank.ranges.boundaries == (0, 333, 666, 1000)
    corrected = load_released(tmp_path, MAKERS[kind](), RANK, ALPHA, as_trained=False)
    same = torch.allclose(corrected.predict(x, 0), networks[0](shown), atol=1e-5)
    assert same == (kind == "resnet")
    for normalised, seen in ((True, prepared), (False, x)):
        chosen = load_released(tmp_path, MAKERS[kind](), RANK, ALPHA, normalised=normalised)
        torch.testing.assert_close(chosen.predict(x, 1), networks[1](seen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_saved_is_what_was_loaded(kind: str, tmp_path: Path) -> None:
    networks = written(kind, tmp_path)
    bank = load_released(tmp_path, MAKERS[kind](), RANK, ALPHA)
    bank.merge(1)
    save_released(bank, tmp_path / "again")
    for number, network in enumerate(networks):
        state = torch.load(tmp_path / "again" / f"{number}_max{EXPERTS}.ckpt", weights_only=True)
        prefix = {"resnet": "resnet.", "deit": "deit.classifier."}[kind]
        expected = network.state_dict()
        assert {key.removeprefix(prefix) for key in state} == set(expected)
        for key, value in expected.items():
            assert torch.equal(state[prefix + key], value), key


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("ppap-resnet50", "resnet50"), ("ppap-deit-small", "deit_small_patch16_224")],
)
def test_experts_at_published_size_have_the_released_keys_and_shapes(
    name: str, architecture: str
) -> None:
    network = timm.create_model(architecture, pretrained=False)
    bank = ExpertBank(Predictor(network, (0.5,) * 3, (0.5,) * 3), 1, ppap_adapter(16, 8.0))
    found = {
        f"{key} {'x'.join(map(str, value.shape))}".strip()
        for key, value in released_state(bank, 0).items()
    }
    lines = gzip.decompress((KEYS / f"{name}.txt.gz").read_bytes()).decode().splitlines()
    assert found == set(lines)


def broken(kind: str, folder: Path) -> None:
    path = folder / "1_max3.ckpt"
    match kind:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:2000])
        case "hostile":
            path.write_bytes(pickle.dumps({"weight": Path()}))
        case "another network":
            torch.save({"weight": torch.zeros(3)}, path)
        case "two banks":
            (folder / "0_max5.ckpt").write_bytes(path.read_bytes())
        case "other base":
            state = torch.load(path, weights_only=True)
            state["resnet.fc.weight"] += 1
            torch.save(state, path)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("missing", "lacks 1_max3.ckpt"),
        ("truncated", "damaged"),
        ("hostile", "holds more than weights"),
        ("another network", "missing .* unexpected weight"),
        ("two banks", r"of \[3, 5\] experts"),
        ("other base", "other base weights .fc.weight"),
    ],
)
def test_wrong_files_are_refused_in_one_line(kind: str, problem: str, tmp_path: Path) -> None:
    written("resnet", tmp_path)
    broken(kind, tmp_path)
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_released(tmp_path, tiny_predictor(), RANK, ALPHA)
    assert "\n" not in str(caught.value)


def test_another_rank_or_predictor_is_refused(tmp_path: Path) -> None:
    written("resnet", tmp_path)
    with pytest.raises(CheckpointError, match=r"wrong shape conv1\.lora_A"):
        load_released(tmp_path, tiny_predictor(), 4, ALPHA)
    with pytest.raises(CheckpointError, match="other base weights"):
        load_released(tmp_path, tiny_predictor(seed=1), RANK, ALPHA)
    with pytest.raises(CheckpointError, match="of no experts"):
        load_released(tmp_path / "absent", tiny_predictor())


@pytest.mark.parametrize(
    ("make", "adapter"),
    [
        (tiny_predictor, Adapter((Full(),))),
        (tiny_predictor, Adapter((Peft("ia3", layers="conv1"),))),
        (lambda: Predictor(Network().eval(), (0.5,) * 4, (0.5,) * 4), Adapter((Norms(),))),
    ],
)
def test_what_the_released_format_cannot_hold_is_refused(
    make: Callable[[], Predictor], adapter: Adapter, tmp_path: Path
) -> None:
    bank = ExpertBank(make(), 2, adapter)
    if isinstance(bank.predictor.network, Network):
        bank.absorb_statistics()
    with pytest.raises(ValueError, match="released format"):
        save_released(bank, tmp_path)
