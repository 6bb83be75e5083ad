"""Every peft method as an adapter: neutral at first, peft's own mathematics, one merge away."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import peft
import pytest
import torch
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Norms
from ppap.experts.adapters.peft import Method, Peft
from ppap.experts.bank import ExpertBank
from ppap.predictors.predictor import Predictor
from tests.ppap.networks import images, scrambled

METHODS = get_args(Method)
LAYERS = r"conv1|mixer"
WRAPPED = re.compile(r"(.*?)\.(?:lora|ia3|hada|lokr|oft|boft)_")


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
    torch.testing.assert_close(
        made.predict(IMAGES, 1), made.teacher_prediction(IMAGES), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("method", METHODS)
def test_merged_weights_predict_as_pefts_own_forward(method: Method) -> None:
    made = bank(method)
    disturb(made)
    merged = made.predict(IMAGES, 0)
    assert not torch.allclose(merged, made.teacher_prediction(IMAGES), atol=1e-2)
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


# Written out in peft's own terms, so that a wrong field in ours shows.
CONFIGURATIONS: dict[str, tuple[type[peft.PeftConfig], dict[str, Any]]] = {
    "lora": (peft.LoraConfig, {"r": 4, "lora_alpha": 2.0}),
    "rslora": (peft.LoraConfig, {"r": 4, "lora_alpha": 2.0, "use_rslora": True}),
    "dora": (peft.LoraConfig, {"r": 4, "lora_alpha": 2.0, "use_dora": True}),
    "ia3": (peft.IA3Config, {"feedforward_modules": []}),
    "loha": (peft.LoHaConfig, {"r": 4, "alpha": 2.0}),
    "lokr": (peft.LoKrConfig, {"r": 4, "alpha": 2.0}),
    "oft": (peft.OFTConfig, {"r": 0, "oft_block_size": 4}),
    "boft": (peft.BOFTConfig, {"boft_block_size": 4}),
}


def small_resnet() -> nn.Module:
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, in_chans=4, channels=(4, 8, 8, 8))


def small_vit() -> nn.Module:
    return VisionTransformer(16, 4, 4, num_classes=3, embed_dim=8, depth=2, num_heads=2)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # BOFT does without CUDA
@pytest.mark.parametrize(
    ("make", "method"),
    [(small_resnet, m) for m in METHODS if m != "oft"] + [(small_vit, m) for m in METHODS],
)
def test_timm_networks_predict_as_under_plain_peft(
    make: Callable[[], nn.Module], method: Method
) -> None:
    torch.manual_seed(0)
    network = make().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # timm's initial values hide the inner layers
            parameter.add_(0.2 * torch.randn(parameter.shape))
    around = Predictor(network, (0.5,) * 4, (0.5,) * 4)
    made = ExpertBank(around, 1, Adapter((Peft(method, 4, 2.0),)))
    own = made.expert(0).tensors()
    images = torch.randn(2, 4, 16, 16)
    untouched = made.teacher_prediction(images)
    torch.testing.assert_close(made.train().predict(images, 0), untouched)
    disturb(made)
    merged, unmerged = (made.train(mode).predict(images, 0) for mode in (False, True))

    kind, options = CONFIGURATIONS[method]
    adapted = sorted({match[1] for name in own if (match := WRAPPED.match(name))})
    plain = peft.get_peft_model(
        copy.deepcopy(network), kind(target_modules=adapted, **options)
    ).eval()  # type: ignore[arg-type]
    added = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    assert {name.removeprefix("base_model.model.") for name in added} == set(own)
    with torch.no_grad():
        for name, parameter in added.items():
            parameter.copy_(own[name.removeprefix("base_model.model.")])
    expected = plain.base_model.model(around.prepare(images))
    assert not torch.allclose(expected, untouched, atol=1e-3)
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unmerged, expected, atol=1e-5, rtol=1e-5)


def test_merging_follows_a_bank_that_was_moved() -> None:
    made = bank("lora").double()
    disturb(made)
    images = IMAGES.double()
    merged = made.predict(images, 0)
    made.train()
    made.predictor.network.eval()
    state = made.expert(0)
    inputs = made.predictor.prepare(images)
    part = made.adapter.student(made.predictor.network)
    base = dict(made.predictor.network.named_parameters())
    unmerged = part.run(base, state.tensors(), state.statistics(), inputs)
    torch.testing.assert_close(merged, unmerged, atol=1e-12, rtol=1e-12)


def test_own_lora_on_some_layers_goes_with_peft_on_others() -> None:
    adapter = Adapter((Lora(2, 1.0, "conv1"), Peft("ia3", layers="mixer")))
    made = ExpertBank(predictor(), 1, adapter).eval()
    disturb(made)
    merged = made.predict(IMAGES, 0)
    torch.testing.assert_close(made.train().predict(IMAGES, 0), merged)


def test_two_peft_methods_in_one_adapter_are_refused() -> None:
    with pytest.raises(ValueError, match="one peft method"):
        Adapter((Peft("lora", layers="conv1"), Peft("ia3", layers="mixer")))


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


def test_layers_that_blocks_do_not_suit_are_refused_in_words() -> None:
    network = nn.Sequential(nn.Conv1d(4, 6, 3), nn.Conv3d(1, 2, 2))
    for layers in ("0", "1"):
        with pytest.raises(ValueError, match=r"boft does not fit .* Conv"):
            ExpertBank(Predictor(network), 1, Adapter((Peft("boft", 2, layers=layers),)))


class Several(nn.Module):
    """Predicts several tensors, one of which has no row for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.mixer(x.mean((2, 3)))
        return {"scores": found, "first": found[:, :2].square(), "mean": found.mean()}


@pytest.mark.parametrize("method", ["dora", "ia3", "boft"])
def test_predictions_of_several_tensors_are_trained_by_any_method(method: Method) -> None:
    adapter = Adapter((Peft(method, 3, 2.0, "mixer"),))
    bank = scrambled(ExpertBank(Predictor(Several()), 1, adapter))
    expected = bank.predict(images(4), 0)
    found = bank.train().predict(images(4), 0)
    assert not bank.student.check.dropped
    torch.testing.assert_close(found, expected)
    found["first"].sum().backward()
    assert all(parameter.grad is not None for parameter in bank.experts.parameters())


class Odd(nn.Module):
    """A convolution of another kind, and a linear layer that is called or read."""

    def __init__(self, read: bool = False, **options: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, **{"padding": 1} | options)
        self.mixer, self.read = nn.Linear(8, 3), read

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.conv1(images)).mean((2, 3))
        if self.read:
            return nn.functional.linear(hidden, self.mixer.weight, self.mixer.bias)
        found: Tensor = self.mixer(hidden)
        return found


ODD: dict[str, Callable[[], nn.Module]] = {
    "dilated": lambda: Odd(dilation=2),
    "dilated, padded to its size": lambda: Odd(dilation=2, padding=2),
    "circular padding": lambda: Odd(padding_mode="circular"),
    "reflected padding": lambda: Odd(padding_mode="reflect"),
    "a weight that is read": lambda: Odd(read=True),
}


@pytest.mark.parametrize("method", ["lora", "rslora", "loha", "lokr"])
@pytest.mark.parametrize("kind", ODD)
def test_where_pefts_forward_is_another_function_its_merged_weights_are_trained(
    kind: str, method: Method
) -> None:
    torch.manual_seed(0)
    around = Predictor(ODD[kind](), (0.5,) * 4, (0.5,) * 4)
    made = ExpertBank(around, 1, Adapter((Biases(""), Peft(method, 2, 2.0, LAYERS)))).train()
    made.predict(IMAGES, 0)  # untrained, nothing shows
    disturb(made)
    trained = made.predict(IMAGES, 0)
    trained.square().sum().backward()
    for name, parameter in made.expert(0).named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    torch.testing.assert_close(made.eval().predict(IMAGES, 0), trained)
    assert (trained - made.teacher_prediction(IMAGES)).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # BOFT does without CUDA
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("dora", "dilated"),
        ("boft", "circular padding"),
        ("ia3", "a weight that is read"),
    ],
)
def test_other_methods_are_refused_there(method: Method, kind: str) -> None:
    torch.manual_seed(0)
    around = Predictor(ODD[kind](), (0.5,) * 4, (0.5,) * 4)
    made = ExpertBank(around, 1, Adapter((Peft(method, 4, 2.0, LAYERS),))).train()
    with pytest.raises(ValueError, match="trains another function than it merges"):
        made.predict(IMAGES, 0)


def test_layers_that_peft_cannot_merge_or_take_are_refused_at_once() -> None:
    grouped = Predictor(Odd(groups=2), (0.5,) * 4, (0.5,) * 4)
    with pytest.raises(ValueError, match=r"cannot merge conv1.*groups"):
        ExpertBank(grouped, 1, Adapter((Peft("lora", 2, layers=LAYERS),)))
    with pytest.raises(ValueError, match="does not fit all of these layers"):
        ExpertBank(grouped, 1, Adapter((Peft("lora", 3, layers=LAYERS),)))


def test_a_network_that_keeps_a_graph_can_be_adapted() -> None:
    network = Network().eval()
    network.kept = network(IMAGES)  # type: ignore[assignment]
    assert ExpertBank(Predictor(network, (0.5,) * 4, (0.5,) * 4), 1, Adapter((Peft("lora", 2),)))


class Watched(nn.Module):
    """A hook of one of its layers, which is a method of the network, keeps what that gives."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.conv1.register_forward_hook(self.keep)

    def keep(self, layer: nn.Module, given: object, found: Tensor) -> None:
        self.kept = found

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv1(x).tanh().mean((2, 3)))


def test_experts_are_merged_after_a_training_whose_hooks_keep_a_graph() -> None:
    bank = scrambled(ExpertBank(Predictor(Watched()), 2, Adapter((Peft("lora", 2, 2.0, "conv1"),))))
    trained = bank.train().predict(images(2), 1)
    trained.sum().backward()
    torch.testing.assert_close(bank.eval().predict(images(2), 1), trained)
