"""Folders of transformers: which load, and which are refused in one line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppap.experts.adapters.adapter import Adapter
from ppap.experts.adapters.parts import Biases
from ppap.experts.bank import ExpertBank
from ppap.files.checkpoints import CheckpointError, load_state, save_weights
from ppap.predictors.public import load_predictor
from tests.ppap.predictors.saved_models import SIDE, Hostile, in_range, pixels, saved


@torch.no_grad()
@pytest.mark.parametrize("form", ["bin", "shards", "half"])
def test_weights_load_however_they_are_saved(form: str, tmp_path: Path) -> None:
    network = saved("vit", tmp_path, max_shard_size="20KB" if form == "shards" else "5GB")
    if form == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    if form == "half":
        network.half().save_pretrained(tmp_path)
        network.float()
    assert (form == "shards") == (tmp_path / "model.safetensors.index.json").is_file()
    predictor = load_predictor("transformers/some/vit", tmp_path)
    assert predictor.name == "transformers/some/vit"
    assert {value.dtype for value in predictor.parameters()} == {torch.float32}
    images = pixels(SIDE)
    torch.testing.assert_close(predictor(in_range(images)), network(in_range(images)).logits)


@torch.no_grad()
def test_weights_that_no_prediction_needs_may_be_missing(tmp_path: Path) -> None:
    """Intel's DPTs lack those of a residual unit that their first fusion layer never calls."""
    network = saved("dpt", tmp_path)
    state = network.state_dict()
    unused = [key for key in state if "fusion_stage.layers.0.residual_layer1" in key]
    assert len(unused) == 4
    kept = {key: value for key, value in state.items() if key not in unused}
    save_weights(kept, tmp_path / "model.safetensors")
    predictor = load_predictor(f"transformers/{tmp_path}")
    x = in_range(pixels(SIDE))
    torch.testing.assert_close(predictor(x), network(x).predicted_depth)
    loaded = dict(predictor.network.named_parameters())
    assert all((loaded[f"network.{key}"] == 0).all() for key in unused)
    again = load_predictor(f"transformers/{tmp_path}")
    banks = [ExpertBank(one, 2, Adapter((Biases(),))) for one in (predictor, again)]
    assert banks[0].fingerprint() == banks[1].fingerprint()  # nothing was drawn at random
    del kept["neck.fusion_stage.layers.1.residual_layer1.convolution1.bias"]
    save_weights(kept, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing neck\.fusion_stage\.layers\.0") as caught:
        load_predictor(f"transformers/{tmp_path}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("segformer", "block.3.0.attention.self.query.weight"),
        ("dpt-hybrid", "encoder.layer.1.attention.attention.key.bias"),
    ],
)
def test_weights_of_attention_among_few_tokens_may_not_be_missing(
    model: str, part: str, tmp_path: Path
) -> None:
    saved(model, tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_state(path)
    (gone,) = [key for key in state if key.endswith(part)]
    save_weights({key: value for key, value in state.items() if key != gone}, path)
    with pytest.raises(CheckpointError, match="does not fit its own config: missing"):
        load_predictor(f"transformers/{tmp_path}")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("hostile", "damaged or holds more than weights"),
        ("cut", "damaged"),
        ("absent", "weights are missing"),
        ("lacks", r"missing vit\.layernorm\.bias"),
        ("adds", "unexpected more.weight"),
        ("shape", r"wrong shape vit\.layernorm\.bias"),
        ("nan", r"holds NaN in vit\.layernorm\.bias"),
        ("integers", r"holds integers for vit\.layernorm\.weight"),
        ("json", "config.json is damaged"),
        ("list", "config.json is damaged"),
        ("config", r"holds no config\.json"),
        ("settings", "the config is damaged"),
        ("kind", "holds a ViTModel; what can be used is ...ForDepthEstimation"),
        ("unknown", "transformers .* does not know"),
        ("processor", "no preprocessor_config.json"),
        ("processor-json", "no preprocessor_config.json that can be used"),
        ("processor-code", "no preprocessor_config.json that can be used"),
    ],
)
def test_wrong_folders_are_refused_in_one_line(damage: str, reason: str, tmp_path: Path) -> None:
    state = saved("vit", tmp_path).state_dict()
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    processor = tmp_path / "preprocessor_config.json"

    def change(path: Path, **settings: Any) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    def hostile() -> None:
        weights.unlink()
        content = pickle.dumps(Hostile(tmp_path / "run"), protocol=2)
        (tmp_path / "pytorch_model.bin").write_bytes(content)

    def code() -> None:
        (tmp_path / "own.py").write_text(f"import os; os.mkdir({str(tmp_path / 'run')!r})")
        processor.write_text(json.dumps({"auto_map": {"AutoImageProcessor": "own.Own"}}))
        change(config, model_type="own")

    def rest(**changed: Tensor) -> None:
        save_weights(state | changed, weights)

    {
        "hostile": hostile,
        "cut": lambda: weights.write_bytes(weights.read_bytes()[:-100]),
        "absent": weights.unlink,
        "lacks": lambda: save_weights(
            {key: value for key, value in state.items() if key != "vit.layernorm.bias"}, weights
        ),
        "adds": lambda: rest(**{"more.weight": torch.zeros(2)}),
        "shape": lambda: rest(**{"vit.layernorm.bias": torch.zeros(3)}),
        "nan": lambda: rest(**{"vit.layernorm.bias": state["vit.layernorm.bias"].log()}),
        "integers": lambda: rest(
            **{"vit.layernorm.weight": torch.ones(16, dtype=torch.int8)},
        ),
        "json": lambda: config.write_text("{"),
        "list": lambda: config.write_text("[1]"),
        "config": config.unlink,
        "settings": lambda: change(config, hidden_size="wide"),
        "kind": lambda: change(config, architectures=["ViTModel"]),
        "unknown": lambda: change(config, architectures=["NoSuchForDepthEstimation"]),
        "processor": processor.unlink,
        "processor-json": lambda: processor.write_text("{"),
        "processor-code": code,
    }[damage]()
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_predictor(f"transformers/{tmp_path}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_code_in_a_config_is_never_run(tmp_path: Path) -> None:
    network = saved("vit", tmp_path)
    config = tmp_path / "config.json"
    code = {"auto_map": {"AutoConfig": "own.Own"}, "quantization_config": {"quant_method": "fp8"}}
    config.write_text(json.dumps(json.loads(config.read_text()) | code))
    predictor = load_predictor(f"transformers/{tmp_path}")
    x = in_range(pixels(SIDE))
    torch.testing.assert_close(predictor(x), network(x).logits)


def test_a_hub_id_is_found_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"fetch https://huggingface\.co/some/vit") as caught:
        load_predictor("transformers/some/vit")
    assert "\n" not in str(caught.value)
    commit = "0" * 40
    cached = tmp_path / "models--some--vit"
    network = saved("vit", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    predictor = load_predictor("transformers/some/vit")
    assert predictor.name == "transformers/some/vit"
    x = in_range(pixels(SIDE))
    torch.testing.assert_close(predictor(x), network(x).logits)


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ImportError, match=r"pip install transformers") as caught:
        load_predictor(f"transformers/{tmp_path}")
    assert "\n" not in str(caught.value)
