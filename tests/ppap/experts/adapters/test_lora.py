"""LoRA in loralib's form: shapes, scaling, what it refuses."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from ppap_kernels import dispatch
from torch import Tensor, nn

from ppap.compute.stateless import run_with
from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Norms
from ppap.experts.bank import ExpertBank
from ppap.predictors.predictor import Predictor
from tests.ppap.networks import TinyResNet, images, scrambled


def test_conv_lora_is_a_convolution_of_low_rank_weights() -> None:
    # For a 1x1 convolution loralib's form is plain low rank: W + s B A, as matrices.
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(6, 4, 1))
    part = Lora(rank=2, alpha=3.0)
    own = part.create(network, torch.Generator().manual_seed(0))
    own["conv1.lora_B"] = torch.randn(4, 2)
    weights = Adapter((part,)).effective(dict(network.named_parameters()), own)
    update = weights["conv1.weight"][:, :, 0, 0] - network.conv1.weight[:, :, 0, 0]  # type: ignore[union-attr,index]
    torch.testing.assert_close(update, 1.5 * own["conv1.lora_B"] @ own["conv1.lora_A"])
    assert torch.linalg.matrix_rank(update) == 2


@pytest.mark.parametrize(("scaling", "factor"), [("corrected", 0.25), ("published", 1.0)])
def test_published_linear_layers_leave_the_scaling_out(
    scaling: Literal["corrected", "published"], factor: float
) -> None:
    network = TinyResNet()
    part = Lora(4, 1.0, r"^conv1$|fc$", linear_scaling=scaling)
    own = part.create(network, torch.Generator().manual_seed(0))
    own |= {key: torch.ones_like(own[key]) for key in ("conv1.lora_B", "fc.lora_B")}
    base = dict(network.named_parameters())
    weights = Adapter((part,)).effective(base, own)
    for layer, expected in (("fc", factor), ("conv1", 0.25)):
        update = (own[f"{layer}.lora_B"] @ own[f"{layer}.lora_A"]).view_as(base[f"{layer}.weight"])
        torch.testing.assert_close(
            weights[f"{layer}.weight"], base[f"{layer}.weight"] + expected * update
        )


def test_factors_have_loralibs_shapes() -> None:
    own = Lora(rank=2, layers=r"conv1$|fc$").create(TinyResNet(), torch.Generator())
    assert {key: tuple(value.shape) for key, value in own.items()} == {
        "conv1.lora_A": (6, 9),
        "conv1.lora_B": (18, 6),
        "layer1.conv1.lora_A": (6, 18),
        "layer1.conv1.lora_B": (24, 6),
        "fc.lora_A": (2, 8),
        "fc.lora_B": (5, 2),
    }


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="rank"):
        Lora(rank=0)
    with pytest.raises(ValueError, match="choose from corrected, published"):
        Lora(linear_scaling="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers are"):
        Lora(layers="nothing").create(TinyResNet(), torch.Generator())
    with pytest.raises(ValueError, match="nothing to train"):
        Adapter((Norms("nothing"),)).create(TinyResNet(), torch.Generator())
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="0 is computed from others"):
        Lora(layers="0").create(nn.Sequential(normed), torch.Generator())
    with pytest.raises(ValueError, match=r"layers=.auto. finds"):
        Lora(layers="conv").create(nn.Sequential(nn.Linear(2, 2)), torch.Generator())


KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "one dimension": (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "three dimensions": (nn.Conv3d(2, 4, (1, 2, 3)), (2, 2, 4, 4, 4)),
    "a lying kernel": (nn.Conv2d(4, 6, (1, 3)), (2, 4, 5, 5)),
    "a standing kernel": (nn.Conv2d(4, 6, (3, 1)), (2, 4, 5, 5)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "depthwise": (nn.Conv1d(4, 8, 3, groups=4), (2, 4, 5)),
    "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding_mode="circular", padding=2), (2, 4, 5, 5)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_of_any_kind_are_adapted(kind: str) -> None:
    layer, shape = KINDS[kind]
    network = nn.Sequential(layer).double()
    part = Lora(2, 4.0, "0")
    own = part.create(network, torch.Generator().manual_seed(0))
    update = 2 * (torch.ones_like(own["0.lora_B"]) @ own["0.lora_A"])
    own["0.lora_B"] = torch.ones_like(own["0.lora_B"])
    weights = Adapter((part,)).effective(dict(network.named_parameters()), own)
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    torch.testing.assert_close(weights["0.weight"] - weight, update.view_as(weight))
    x = torch.randn(shape, dtype=torch.float64)
    found = run_with(network, weights, x)
    with torch.no_grad():
        weight.add_(update.view_as(weight))
    torch.testing.assert_close(found, network(x))


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_of_any_kind_are_merged_on_a_gpu(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kernel writes there, or torch where the kernel does not take the weight."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(dispatch, "_gpu", lambda device: "unmeasured")
    layer, _ = KINDS[kind]
    base = dict(nn.Sequential(copy.deepcopy(layer)).named_parameters())
    part = Lora(2, 4.0, "0")
    own = part.create(nn.Sequential(layer), torch.Generator().manual_seed(0))
    own["0.lora_B"] = torch.ones_like(own["0.lora_B"])
    trained = Adapter((part,)).effective(base, own)["0.weight"]
    with torch.no_grad():
        merged = Adapter((part,)).effective(base, own)["0.weight"]
    assert merged.shape == base["0.weight"].shape
    torch.testing.assert_close(merged, trained)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_precision_are_adapted_and_trained_in_float32_at_least(
    dtype: torch.dtype,
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 5)).to(dtype)
    adapter = Adapter((Biases(""), Lora(2, 4.0, "0|2")))
    bank = ExpertBank(Predictor(Cast(network, dtype)), 2, adapter)
    with torch.no_grad():
        for parameter in bank.experts.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert {p.dtype for p in bank.experts.parameters()} == {
        torch.promote_types(dtype, torch.float32)
    }
    x, timesteps = torch.randn(4, 3, 8, 8), torch.tensor([10, 900, 20, 800])
    trained = bank.train().predict(x, 0)
    trained.square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in bank.expert(0).parameters())
    torch.testing.assert_close(bank.eval().predict(x, 0), trained)
    apart = torch.cat([bank(x[i : i + 1], timesteps[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(bank(x, timesteps), apart, atol=0.05, rtol=0.05)
    assert not bank._mixed.check.dropped


class Cast(nn.Module):
    """A network of another precision between float32 images and float32 logits."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(images.to(self.dtype)).float()
        return found


class Codes(nn.Module):
    """A layer whose weight the network has by a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(5, 192))
        self.out = nn.Linear(192, 5)
        self.out.weight = self.codes

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(x.flatten(1))
        return found


class Probe(nn.Linear):
    """A network that is a single layer."""

    def __init__(self) -> None:
        super().__init__(192, 5)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(1))


@pytest.mark.parametrize(("make", "name"), [(Codes, "codes"), (Probe, "weight")])
def test_weights_without_a_layers_name_are_adapted(make: type[nn.Module], name: str) -> None:
    torch.manual_seed(0)
    network = make()
    bank = scrambled(ExpertBank(Predictor(network), 1, Adapter((Lora(2, 1.0, "auto"),))))
    own = {key.rpartition(".")[2]: value for key, value in bank.expert(0).tensors().items()}
    weight, x = dict(network.named_parameters())[name], images(3)
    update = 0.5 * own["lora_B"] @ own["lora_A"]
    moved = bank.predict(x, 0) - network(x)
    torch.testing.assert_close(moved, x.flatten(1) @ update.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bank.effective(0)[name], weight + update)
