"""Checkpoints of timm load strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from ppap.files.checkpoints import CheckpointError, save_weights
from ppap.predictors.public import load_predictor
from ppap.tasks.classes import ClassTask
from ppap.tasks.protocol import Task
from ppap.tasks.similarity import SimilarityTask


def test_a_timm_checkpoint_loads_strictly_with_its_own_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("resnet18", num_classes=7).eval()
    save_weights(source.state_dict(), tmp_path / "resnet18.safetensors")
    predictor = load_predictor("timm/resnet18", tmp_path / "resnet18.safetensors", num_classes=7)
    assert predictor.size == (288, 288)  # trained at 224
    assert predictor.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    x = torch.rand(1, 3, 288, 288)
    with torch.no_grad():
        normalised = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        torch.testing.assert_close(predictor(2 * x - 1), source(normalised), rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_predictor("timm/resnet18", tmp_path / "resnet18.safetensors", num_classes=8)


@pytest.mark.parametrize(
    ("name", "side"), [("resnet10t.c3_in1k", 224), ("test_vit.r160_in1k", 160)]
)
def test_a_predictor_sees_images_of_the_size_that_its_weights_are_tested_at(
    name: str, side: int, tmp_path: Path
) -> None:
    assert timm.get_pretrained_cfg(name).input_size[1] == {224: 176, 160: 160}[side]
    save_weights(timm.create_model(name).state_dict(), tmp_path / "a.safetensors")
    assert load_predictor(f"timm/{name}", tmp_path / "a.safetensors").size == (side, side)
    chosen = load_predictor(f"timm/{name}", tmp_path / "a.safetensors", (160, 160))
    assert chosen.size == (160, 160)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 0}, "gives features and no classes"),
        ("vit_small_patch14_dinov2", {}, "gives features and no classes"),
        ("resnet10t", {"in_chans": 1}, "how to normalise images of 1 channels"),
        ("resnet10t", {"classes": 7}, "does not take these options.*classes"),
    ],
)
def test_what_is_no_classifier_with_a_published_normalisation_is_refused(
    name: str, options: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """Features would be taken for the logits of as many classes."""
    known = {key: value for key, value in options.items() if key != "classes"}
    save_weights(timm.create_model(name, **known).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=why):
        load_predictor(f"timm/{name}", tmp_path / "a.safetensors", **options)


@pytest.mark.parametrize(
    ("options", "task"),
    [({}, SimilarityTask()), ({"num_classes": 512}, ClassTask())],
    ids=["tower", "classifier"],
)
def test_the_tower_of_a_clip_embeds_and_is_no_classifier(
    options: dict[str, Any], task: Task, tmp_path: Path
) -> None:
    """timm counts the numbers of an embedding as classes."""
    name, path = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", tmp_path / "a.safetensors"
    torch.manual_seed(0)
    tower = timm.create_model(name, depth=1).eval()
    save_weights(tower.state_dict(), path)
    predictor = load_predictor(f"timm/{name}", path, depth=1, **options)
    assert predictor.task == task
    x = torch.rand(2, 3, 224, 224)
    prepared = predictor.prepare(2 * x - 1)
    mean, std = (torch.tensor(tower.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(prepared, (x - mean) / std)
    with torch.no_grad():
        torch.testing.assert_close(predictor(2 * x - 1), tower(prepared))


@pytest.mark.parametrize("side", [64, (64, 96)])
def test_the_size_that_a_network_is_made_for_is_that_of_its_images(
    side: int | tuple[int, int], tmp_path: Path
) -> None:
    path, name = tmp_path / "a.safetensors", "vit_tiny_patch16_224"
    small: dict[str, Any] = {"depth": 1, "img_size": side}
    save_weights(timm.create_model(name, **small).state_dict(), path)
    predictor = load_predictor(f"timm/{name}", path, **small)
    assert predictor.size == ((64, 64) if side == 64 else side)
    assert predictor(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)


@pytest.mark.parametrize("options", [{"features_only": True}, {"num_classes": 1}])
def test_a_prediction_that_is_not_a_classifiers_is_named_where_it_is_loaded(
    options: dict[str, Any], tmp_path: Path
) -> None:
    save_weights(timm.create_model("resnet10t", **options).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"makes nothing of an image of 224 x 224 \(class pred"
    ):
        load_predictor("timm/resnet10t", tmp_path / "a.safetensors", **options)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("efficientnet_b0", ["efficientnet_b0.ra4_e3600_r224_in1k"]),
        ("efficientnet_b0.ra_in1k", []),
        ("resnet10t", []),
    ],
)
def test_a_name_whose_weights_are_normalised_in_several_ways_is_told_of(
    name: str, told: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_weights(timm.create_model(name).state_dict(), tmp_path / "a.safetensors")
    load_predictor(f"timm/{name}", tmp_path / "a.safetensors")
    messages = [record.getMessage() for record in caplog.records if "normalised" in record.msg]
    assert [message.split(" are ")[0] for message in messages] == told


def test_a_last_layer_that_nobody_trained_is_refused(tmp_path: Path) -> None:
    """timm draws one at random if it fetches weights of another number of classes."""
    save_weights(timm.create_model("resnet10t").state_dict(), tmp_path / "hub.safetensors")
    overlay = {"file": str(tmp_path / "hub.safetensors")}  # in place of the hub
    fetched = load_predictor("timm/resnet10t", pretrained_cfg_overlay=overlay)
    assert fetched(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"has 1000 classes, .* a last layer of 7 at random"):
        load_predictor("timm/resnet10t", num_classes=7, pretrained_cfg_overlay=overlay)


@torch.no_grad()
def test_files_of_other_names_load_as_timm_renames_them(tmp_path: Path) -> None:
    """Swin's authors put what makes maps smaller at the end of a stage, and masks beside it."""
    torch.manual_seed(0)
    name, small = "swin_tiny_patch4_window7_224", {"depths": (2, 2), "num_heads": (1, 2)}
    network = timm.create_model(name, embed_dim=16, **small).eval()
    theirs = {
        key.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): part
        for key, part in network.state_dict().items()
    }
    theirs["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    torch.save({"model": theirs}, tmp_path / "swin.pth")
    predictor = load_predictor(f"timm/{name}", tmp_path / "swin.pth", embed_dim=16, **small)
    x = torch.rand(1, 3, 224, 224) * 2 - 1
    torch.testing.assert_close(predictor(x), network(predictor.prepare(x)))
    del theirs["norm.bias"]
    torch.save({"model": theirs}, tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match=r"does not fit Swin.*missing .*norm\.bias"):
        load_predictor(f"timm/{name}", tmp_path / "swin.pth", embed_dim=16, **small)


def test_a_size_that_a_network_cannot_take_is_refused_where_it_is_given(tmp_path: Path) -> None:
    path, name, small = tmp_path / "a.safetensors", "vit_tiny_patch16_224", {"depth": 1}
    save_weights(timm.create_model(name, **small).state_dict(), path)
    with pytest.raises(ValueError, match=r"takes no images of 32 x 64 .*; leave size out"):
        load_predictor(f"timm/{name}", path, (32, 64), **small)
    told = load_predictor(f"timm/{name}", path, (32, 64), dynamic_img_size=True, **small)
    assert told(torch.zeros(2, 3, 16, 48)).shape == (2, 1000)
