"""Every peft method as an adapter: neutral at first, peft's own mathematics, one merge away."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import peft
import pytest
import torch
from torch import Tensor, nn

from ppap.adapters import Adapter, Biases, Lora, Norms
from ppap.experts import ExpertBank
from ppap.peft_adapters import Method, Peft
from ppap.predictors import Predictor

METHODS = get_args(Method)
LAYERS = r"conv1|mixer"


class Network(nn.Module):
    """A convolution, a batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.mixer = nn.Linear(8, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(images))).mean((2, 3))
        found: Tensor = self.head(torch.tanh(self.mixer(hidden)))
        return found


def predictor() -> Predictor:
    torch.manual_seed(3)
    return Predictor(Network().eval(), (0.5,) * 4, (0.25,) * 4, name="toy")


def bank(method: Method, experts: int = 2, seed: int = 0) -> ExpertBank:
    adapter = Adapter((Biases(), Norms(), Peft(method, 2, 1.0, LAYERS)))
    return ExpertBank(predictor(), experts, adapter, seed=seed).eval()


def disturb(made: ExpertBank) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.experts.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


IMAGES = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_adapter_changes_nothing(method: Method) -> None:
    made = bank(method)
    torch.testing.assert_close(made.predict(IMAGES, 1), made.teach(IMAGES), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_merged_weights_predict_as_pefts_own_forward(method: Method) -> None:
    made = bank(method)
    disturb(made)
    merged = made.predict(IMAGES, 0)
    assert not torch.allclose(merged, made.teach(IMAGES), atol=1e-2)
    part = made.adapter.parts[2]
    assert isinstance(part, Peft)
    plain = part.inject(made.predictor.network).eval()
    own = made.expert(0).tensors()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            value = own.get(name, own.get(name.replace("base_layer.", "")))
            if value is not None:
                parameter.data = value.clone()
        for name, buffer in plain.named_buffers():
            if name in made.expert(0).statistics():
                buffer.copy_(made.expert(0).statistics()[name])
    expected = plain(made.predictor.prepare(IMAGES))
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_training_reaches_every_tensor_of_its_expert_and_nothing_else(method: Method) -> None:
    made = bank(method)
    disturb(made)
    made.train()
    made.predict(IMAGES, 0).square().sum().backward()
    for name, parameter in made.expert(0).named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert all(parameter.grad is None for parameter in made.expert(1).parameters())
    assert all(parameter.grad is None for parameter in made.predictor.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_a_bank_is_saved_and_loaded(method: Method, tmp_path: Path) -> None:
    made = bank(method)
    disturb(made)
    made.save(tmp_path)
    loaded = ExpertBank.load(tmp_path, predictor())
    assert loaded.adapter == made.adapter
    timesteps = torch.tensor([3, 600, 999])
    torch.testing.assert_close(loaded(IMAGES, timesteps), made(IMAGES, timesteps))


def test_the_seed_sets_the_initial_values() -> None:
    ours, same, other = (bank("lora", seed=seed).expert(0).tensors() for seed in (0, 0, 1))
    key = "conv1.lora_A.default.weight"
    assert torch.equal(ours[key], same[key])
    assert not torch.equal(ours[key], other[key])
    state = torch.random.get_rng_state()
    bank("loha")
    assert torch.equal(state, torch.random.get_rng_state())


def test_linear_lora_is_the_librarys_own() -> None:
    """peft's LoRA on linear layers and ppap's are the same map of the same tensors."""
    theirs = ExpertBank(predictor(), 1, Adapter((Peft("lora", 2, 1.0, "mixer"),))).eval()
    ours = ExpertBank(predictor(), 1, Adapter((Lora(2, 1.0, "mixer"),))).eval()
    disturb(theirs)
    found = theirs.expert(0).tensors()
    state = {
        "mixer/lora_A": found["mixer.lora_A.default.weight"],
        "mixer/lora_B": found["mixer.lora_B.default.weight"],
    }
    ours.expert(0).load_state_dict(state)
    torch.testing.assert_close(theirs.predict(IMAGES, 0), ours.predict(IMAGES, 0))


def test_peft_itself_agrees_on_what_is_trained() -> None:
    config = peft.LoraConfig(r=2, lora_alpha=1.0, target_modules=["conv1", "mixer"])
    model = peft.get_peft_model(Network(), config)  # type: ignore[arg-type]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    made = ExpertBank(predictor(), 1, Adapter((Peft("lora", 2, 1.0, LAYERS),)))
    assert sum(p.numel() for p in made.experts.parameters()) == trained


def test_oft_leaves_convolutions_alone() -> None:
    own = bank("oft").expert(0).tensors()
    assert [name for name in own if "oft" in name] == ["mixer.oft_R.default.weight"]
    with pytest.raises(ValueError, match="boft"):
        ExpertBank(predictor(), 1, Adapter((Peft("oft", 2, layers="conv1"),)))


def test_an_unknown_method_and_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown method"):
        Peft("qlora")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="blocks of 5"):
        ExpertBank(predictor(), 1, Adapter((Peft("oft", 5, layers=LAYERS),)))
