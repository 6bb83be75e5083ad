"""Models of torchvision: their transforms, names, caches and old files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from ppap.files.checkpoints import CheckpointError
from ppap.predictors.public import load_predictor
from tests.ppap.predictors.saved_models import in_range, pixels, torchvision_file


@torch.no_grad()
def test_a_torchvision_classifier_is_what_its_transforms_and_network_are(tmp_path: Path) -> None:
    network = torchvision_file("resnet18", tmp_path / "resnet18.pth", num_classes=7)
    predictor = load_predictor("torchvision/resnet18", tmp_path / "resnet18.pth", num_classes=7)
    assert predictor.size == (224, 224)
    assert predictor.name == "torchvision/resnet18"
    images = pixels(224, count=1)
    transforms = torchvision.models.ResNet18_Weights.DEFAULT.transforms(resize_size=224)
    torch.testing.assert_close(predictor(in_range(images)), network(transforms(images)))


@pytest.mark.parametrize("name", ["resnet50", "resnet50:IMAGENET1K_V1", "resnet50.IMAGENET1K_V2"])
def test_torchvision_weights_are_fetched_by_name_from_its_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    asked: list[str] = []

    def download(url: str, path: str, digest: str, progress: bool) -> None:
        asked.append(url)
        assert digest == url[-12:-4]
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    with pytest.raises(CheckpointError, match=r"no network.*fetch https://download.*give its path"):
        load_predictor(f"torchvision/{name}")
    versions = torchvision.models.ResNet50_Weights
    version = versions.IMAGENET1K_V1 if name.endswith("V1") else versions.IMAGENET1K_V2
    assert asked == [version.url]


@torch.no_grad()
def test_a_torchvision_segmenter_gives_its_logits(tmp_path: Path) -> None:
    name, path = "deeplabv3_mobilenet_v3_large", tmp_path / "deeplab.pth"
    network = torchvision_file(name, path, weights_backbone=None, num_classes=4, aux_loss=True)
    predictor = load_predictor(f"torchvision/{name}", path, num_classes=4)
    assert predictor.size == (520, 520)
    predictor = load_predictor(f"torchvision/{name}", path, size=(48, 48), num_classes=4)
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms(resize_size=48)
    images = pixels(48)
    expected = network(transforms(images))["out"]
    torch.testing.assert_close(predictor(in_range(images)), expected, rtol=1e-4, atol=1e-4)
    assert not any("aux" in key for key in predictor.state_dict())
    without = {key: value for key, value in network.state_dict().items() if "aux" not in key}
    torch.save(without, path)
    with pytest.raises(CheckpointError, match=r"missing aux_classifier\.0\.weight"):
        load_predictor(f"torchvision/{name}", path, num_classes=4)
    own = load_predictor(f"torchvision/{name}", path, (48, 48), num_classes=4, aux_loss=False)
    torch.testing.assert_close(own(in_range(images)), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["googlenet", "densenet121", "mnasnet0_5"])
def test_torchvision_files_of_old_load_as_torchvision_loads_them(name: str, tmp_path: Path) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    network = torchvision_file(name, tmp_path / "old.pth", **options)
    state = {
        # As the published file has it: other names within dense layers, no counters.
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    if name != "densenet121":
        state = network.state_dict()
    torch.save(state, tmp_path / "old.pth")
    predictor = load_predictor(f"torchvision/{name}", tmp_path / "old.pth", size=(64, 64))
    network.transform_input = True  # torchvision sets it where it loads GoogLeNet's weights
    x = in_range(pixels(64))
    torch.testing.assert_close(predictor(x), network(predictor.prepare(x)), rtol=1e-4, atol=1e-4)


def test_the_size_that_a_torchvision_vit_is_made_for_is_that_of_its_images(tmp_path: Path) -> None:
    torchvision_file("vit_b_32", tmp_path / "vit.pth", image_size=64)
    predictor = load_predictor("torchvision/vit_b_32", tmp_path / "vit.pth", image_size=64)
    assert predictor.size == (64, 64)
    assert predictor(torch.zeros(1, 3, 96, 96)).shape == (1, 1000)


def test_options_that_a_torchvision_network_does_not_take_are_named(tmp_path: Path) -> None:
    torchvision_file("resnet18", tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"does not take these options.*given classes") as caught:
        load_predictor("torchvision/resnet18", tmp_path / "resnet18.pth", classes=7)
    assert "\n" not in str(caught.value)
