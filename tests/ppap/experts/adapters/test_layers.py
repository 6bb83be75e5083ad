"""Layers that are found by themselves, and what is said of how many they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import nn
from torchvision import models

from ppap.experts.adapters.adapter import Adapter, full_adapter, ppap_adapter
from ppap.experts.adapters.coverage import Coverage, default_adapter
from ppap.experts.adapters.layers import AUTO, PPAP_LORA_LAYERS, adaptable_weights, matching_weights
from ppap.experts.adapters.lora import Lora
from ppap.experts.adapters.parts import Biases, Head, Norms, Part
from ppap.experts.adapters.peft import Peft
from ppap.experts.bank import ExpertBank
from ppap.predictors.predictor import Predictor
from ppap.predictors.wrappers import MixedPrecision
from tests.ppap.networks import images, scrambled, tiny_predictor


def transformers_model(kind: str) -> nn.Module:
    config = transformers.AutoConfig.for_model(kind)
    return transformers.AutoModelForImageClassification.from_config(config)


FAMILIES: dict[str, tuple[Callable[[str], Any], float]] = {
    "convnext_tiny": (models.get_model, 0.9),
    "densenet121": (models.get_model, 0.8),
    "efficientnet_b0": (models.get_model, 0.7),
    "mobilenet_v3_small": (models.get_model, 0.5),
    "squeezenet1_1": (models.get_model, 0.9),
    "swin_t": (models.get_model, 0.9),
    "vgg11": (models.get_model, 0.9),
    "vit_b_16": (models.get_model, 0.9),
    "beit_base_patch16_224": (timm.create_model, 0.9),
    "coat_tiny": (timm.create_model, 0.9),
    "deit_tiny_distilled_patch16_224": (timm.create_model, 0.9),
    "levit_128s": (timm.create_model, 0.8),
    "mixer_s32_224": (timm.create_model, 0.9),
    "mobilevit_xxs": (timm.create_model, 0.6),
    "vit": (transformers_model, 0.9),
    "resnet": (transformers_model, 0.9),
}
HEADS = ("classifier.2", "classifier", "classifier.1", "classifier.3", "classifier.6", "head",
         "heads.head", "head_dist", "head.linear", "head.fc", "head_dist.linear")  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # of weights that are not there, on "meta"
@pytest.mark.parametrize("family", FAMILIES)
def test_any_classifier_has_layers_that_are_found(family: str) -> None:
    make, least = FAMILIES[family]
    with torch.device("meta"):
        network = make(family)
    found = matching_weights(network, AUTO)
    assert Coverage.of(network, [about.name for about in found]).share > least
    left = {about.name for about in adaptable_weights(network)} - {about.name for about in found}
    depthwise = {
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
    }
    assert left - depthwise <= set(HEADS)
    lora = default_adapter(network).parts[-1]
    assert isinstance(lora, Lora)
    assert Coverage.of(network, [about.name for about in lora.weights(network)]).share > 0.1


def test_the_papers_networks_keep_the_papers_layers() -> None:
    for name in ("resnet50", "deit_small_patch16_224"):
        with torch.device("meta"):
            network = timm.create_model(name)
        assert default_adapter(network) == ppap_adapter()


def test_attention_of_torch_itself_is_adapted_also_where_it_reads_its_weights() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Turned(), layer, Turned())
    bank = ExpertBank(Predictor(network), 1, Adapter((Lora(2, 4.0, AUTO),)))
    names = {name.rpartition(".")[0] for name in bank.expert(0).tensors()}
    assert names == {"0", "3.self_attn.in_proj", "3.self_attn.out_proj", "3.linear1", "3.linear2"}
    with torch.no_grad():
        for parameter in bank.experts.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    trained = bank.train().predict(images(4), 0)
    trained.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in bank.experts.parameters())
    torch.testing.assert_close(bank.eval().predict(images(4), 0), trained)
    assert (trained - bank.teacher_prediction(images(4))).abs().max() > 1e-2


class Turned(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


def test_a_shared_weight_is_adapted_once() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    network[1].weight = network[0].weight
    names = [about.name for about in matching_weights(network, "0|1")]
    assert names == ["0"]


@pytest.mark.parametrize(
    ("adapter", "level"),
    [
        (Adapter((Lora(2, 2.0, "downsample.0"),)), logging.WARNING),
        (Adapter((Biases(), Peft("lora", 2, 2.0, "downsample.0"))), logging.WARNING),
        (ppap_adapter(2, 2.0), logging.INFO),
        (Adapter((*full_adapter().parts, Lora(2, 2.0, "downsample.0"))), logging.INFO),
        (Adapter((Lora(2, 2.0, AUTO),)), logging.INFO),
    ],
)
def test_what_share_is_adapted_is_said_once_and_warned_of_where_it_is_tiny(
    adapter: Adapter, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ppap.experts"):
        ExpertBank(tiny_predictor(), 3, adapter)
    (line,) = [r for r in caplog.records if "the adapter reaches" in r.getMessage()]
    assert line.levelno == level
    assert ("layers='auto' finds more" in line.getMessage()) is (level == logging.WARNING)


def test_a_bank_without_a_named_adapter_takes_any_classifier() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    bank = ExpertBank(Predictor(network), 2)
    assert bank.adapter == ppap_adapter(layers=AUTO)
    with pytest.raises(ValueError, match="layers='auto' finds them"):
        matching_weights(network, PPAP_LORA_LAYERS)


@pytest.mark.parametrize(
    "part",
    [
        Lora(2, 2.0, r"^conv1$|^layer1\."),
        Lora(2, 2.0, "auto"),
        Biases(r"^(fc|bn1)\."),
        Norms(r"^bn1$"),
        Head(r"^fc$"),
        Peft("lora", 2, layers=r"^fc$"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_names_are_those_of_the_network_within_mixed_precision(part: Part) -> None:
    single, mixed = tiny_predictor(), tiny_predictor()
    mixed.network = MixedPrecision(mixed.network, torch.bfloat16)
    banks = [ExpertBank(predictor, 2, Adapter((part,))) for predictor in (single, mixed)]
    names = [list(bank.expert(0).tensors()) for bank in banks]
    assert names[1] == [f"network.{name}" for name in names[0]]
    for bank in banks:
        scrambled(bank)
    found = [bank.predict(images(4), 0) for bank in banks]
    torch.testing.assert_close(*found, atol=0.02, rtol=0.05)
    unadapted = single(images(4))
    assert (found[0] - unadapted).abs().max() > 0.05
    for number in range(2):
        x = torch.cat([images(2), images(2)])
        experts = torch.tensor([0, 1, 0, 1])
        torch.testing.assert_close(
            banks[number].predict_mixed(x, experts)[::2], banks[number].predict(x[::2], 0),
            atol=0.05 * number + 1e-5, rtol=1e-4,
        )  # fmt: skip


class Attending(nn.Module):
    """Blocks whose attention ends in a layer ``fc``, before a last layer of another name."""

    def __init__(self, last: str) -> None:
        super().__init__()
        parts = {"qkv": nn.Linear(8, 24), "fc": nn.Linear(8, 8)}
        block = nn.ModuleDict({"attn": nn.ModuleDict(parts), "mlp": nn.Linear(8, 8)})
        self.conv1 = nn.Conv2d(3, 8, 4)
        self.blocks = nn.ModuleList([block])
        self.add_module(last, nn.Linear(8, 5))


def test_a_layer_within_blocks_is_no_last_one_by_its_name_alone() -> None:
    within = {"conv1", "blocks.0.attn.qkv", "blocks.0.attn.fc", "blocks.0.mlp"}
    for last, expected in (("out", {*within, "out"}), ("fc", within), ("head", within)):
        assert {about.name for about in matching_weights(Attending(last), AUTO)} == expected
    beside = nn.ModuleDict({"fc": nn.Linear(8, 5), "projection": nn.Linear(8, 4)})
    assert [about.name for about in matching_weights(beside, AUTO)] == ["projection"]


def test_two_parts_do_not_both_take_what_one_of_them_finds() -> None:
    adapter = Adapter((Lora(2, 2.0, "auto"), Lora(4, 1.0, "^fc$")))
    with pytest.raises(ValueError, match="two Lora parts adapt"):
        ExpertBank(tiny_predictor(), 2, adapter)


def test_a_network_without_layers_for_lora_is_told_what_else_trains_it() -> None:
    network = nn.ModuleDict({"body": nn.LSTM(4, 4), "fc": nn.Linear(4, 5)})
    with pytest.raises(ValueError, match=r"the last one.* left out; adapt others.*full_adapter"):
        ExpertBank(Predictor(network), 2)
