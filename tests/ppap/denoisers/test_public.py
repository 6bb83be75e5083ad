"""Public models: full-size architectures against recorded keys, files at reduced width."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppap.denoisers.catalogue import CLASSIFIERS, DENOISERS
from ppap.denoisers.flags import GlideFlags, UNetFlags
from ppap.denoisers.public import load_denoiser, load_noisy_classifier
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.ddpm import DDPM
from ppap.diffusion.guide import State
from ppap.diffusion.sampling import sample
from ppap.files.checkpoints import CheckpointError
from ppap.guidance.guides import LikelihoodGuide
from ppap.tasks.classes import ClassTask
from tests.golden.check import fill

KEYS = Path(__file__).parents[1] / "keys"
RECORDED = sorted(
    name
    for path in KEYS.glob("*.txt.gz")
    if not (name := path.name.removesuffix(".txt.gz")).startswith("ppap-")
)
MODELS = DENOISERS | CLASSIFIERS
SMALL: dict[str, Any] = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "num_head_channels": 32,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "num_classes": 5,
}
SMALL_GLIDE = {key: value for key, value in SMALL.items() if key != "num_classes"} | {
    "text_ctx": 6,
    "xf_width": 32,
    "xf_layers": 1,
    "xf_heads": 2,
    "n_vocab": 11,
}
SMALL_CLASSIFIER: dict[str, Any] = {
    "image_size": 16,
    "classifier_width": 64,
    "classifier_depth": 1,
    "classifier_attention_resolutions": "8",
    "channel_mult": "1,1",
    "num_classes": 5,
}


def small(name: str) -> dict[str, Any]:
    """Flags that make a model small, of its own kind."""
    if name in CLASSIFIERS:
        return SMALL_CLASSIFIER
    if isinstance(DENOISERS[name].flags, GlideFlags):
        return SMALL_GLIDE
    return SMALL | ({"num_head_channels": -1} if "improved" in name or "128" in name else {})


def published(name: str, folder: Path) -> dict[str, Tensor]:
    """Write seeded weights as the public file is: a plain state dict, pickled."""
    model = MODELS[name]
    with torch.device("meta"):
        network = type(model.flags)(**vars(model.flags) | small(name)).network()
    state = {key: fill(key, value.shape) for key, value in network.state_dict().items()}
    torch.save(state, folder / Path(model.file).name)
    return state


def load(name: str, path: Path, **options: Any) -> nn.Module:
    loader = load_noisy_classifier if name in CLASSIFIERS else load_denoiser
    return loader(name, path, **small(name) | options)


def trained_network(name: str) -> nn.Module:
    with torch.device("meta"):
        return MODELS[name].flags.network()


@pytest.mark.parametrize("name", RECORDED)
def test_full_size_architectures_have_the_keys_and_shapes_of_the_public_ones(name: str) -> None:
    """Recorded from the public implementations, built from their published flags."""
    lines = gzip.decompress((KEYS / f"{name}.txt.gz").read_bytes()).decode().splitlines()
    state = trained_network(name).state_dict()
    assert sorted(f"{key} {'x'.join(map(str, v.shape))}" for key, v in state.items()) == lines


def test_keys_of_every_architecture_are_recorded() -> None:
    twins = {"improved-cifar10-vlb", "improved-imagenet64-vlb"}  # other weights, same network
    assert set(RECORDED) == set(MODELS) - twins
    for twin in twins:
        assert DENOISERS[twin].flags == DENOISERS[twin.replace("-vlb", "")].flags


@pytest.mark.parametrize(
    ("name", "count", "digits"),
    [
        # Stated by public wrappers of openai/glide-text2im; its own notebook prints them when run.
        ("glide-base", 385_030_726, 0),
        ("glide-upsampler", 398_361_286, 0),
        # The size of the largest network of arXiv 2105.05233, in millions.
        ("adm-imagenet512-cond", 559_000_000, 6),
        # Sizes in the published files' names and README of openai/improved-diffusion.
        ("improved-imagenet64-cond", 270_000_000, 7),
        ("improved-cifar10", 50_000_000, 7),
        ("improved-imagenet64", 100_000_000, 8),
        # Counted from the public implementation; no published figure was found for these.
        ("adm-imagenet256", 552_814_086, 0),
        ("adm-classifier64", 65_438_568, 0),
        ("adm-classifier256", 54_096_360, 0),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, count: int, digits: int) -> None:
    own = sum(parameter.numel() for parameter in trained_network(name).parameters())
    assert round(own, -digits) == count


@pytest.mark.parametrize("name", MODELS)
def test_every_public_file_loads_by_name(name: str, tmp_path: Path) -> None:
    state = published(name, tmp_path)
    model = load(name, tmp_path)
    own = model.state_dict()
    assert {key.rpartition("network.")[2] for key in own} == set(state)
    for key, value in own.items():
        assert torch.equal(value, state[key.rpartition("network.")[2]])
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "conditions"),
    [
        ("adm-imagenet256", {}),
        ("adm-imagenet64-cond", {"y": torch.tensor([1, 4])}),
        ("improved-cifar10", {}),
        ("improved-imagenet64-cond", {"y": torch.tensor([3])}),
        ("glide-base", {}),
        ("glide-upsampler", {"low_res": torch.zeros(2, 3, 4, 4)}),
    ],
)
def test_loaded_denoisers_sample(name: str, conditions: dict[str, Tensor], tmp_path: Path) -> None:
    published(name, tmp_path)
    denoiser = load_denoiser(name, tmp_path, **small(name)).with_conditions(**conditions)
    for sampler in (DDIM(2), DDPM(2)):
        images = sample(denoiser, [1, 2], None, sampler)
        assert images.shape == (2, 3, 16, 16)
        assert images.isfinite().all()
        assert images.std() > 0
        alone = sample(denoiser.rows(slice(1, 2)), [2], None, sampler)
        torch.testing.assert_close(alone[0], images[1], rtol=1e-3, atol=1e-3)


def test_schedules_are_the_published_ones() -> None:
    lengths = {}
    for name, model in DENOISERS.items():
        denoiser = model.flags.denoiser(nn.Identity())
        lengths[name] = len(denoiser.schedule)
        assert denoiser.learned_variance
    assert {name for name, length in lengths.items() if length == 4000} == {
        name for name in DENOISERS if name.startswith("improved")
    }
    # The first signal level tells linear (1 - 1e-4) from cosine.
    for name in ("adm-imagenet256", "glide-upsampler"):
        flags = DENOISERS[name].flags
        assert flags.denoiser(nn.Identity()).schedule.alphas_cumprod[0] == pytest.approx(0.9999)
    for name in ("adm-imagenet64-cond", "glide-base"):
        level = DENOISERS[name].flags.denoiser(nn.Identity()).schedule.alphas_cumprod[0]
        assert level == pytest.approx(0.999959, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "shown"), [("improved-cifar10", 250.0), ("improved-imagenet64-cond", 1000.0)]
)
def test_improved_diffusion_rescales_timesteps_where_published(name: str, shown: float) -> None:
    class Spy(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return torch.cat([x, x], 1)

    seen: list[Tensor] = []
    denoiser = DENOISERS[name].flags.denoiser(Spy())
    denoiser(torch.zeros(1, *denoiser.shape), torch.tensor([1000]))
    assert seen[0].tolist() == [shown]


def test_half_precision_keeps_norms_and_embeddings_in_float32(tmp_path: Path) -> None:
    name = "adm-imagenet256"
    published(name, tmp_path)
    for dtype in (torch.float16, torch.bfloat16):
        denoiser = load(name, tmp_path, dtype=dtype)
        found = {
            type(module).__name__: module.weight.dtype
            for module in denoiser.network.middle_block.modules()
            if isinstance(getattr(module, "weight", None), Tensor)
        }
        assert found == {
            "GroupNorm32": torch.float32,
            "Linear": torch.float32,
            "Conv1d": dtype,
            "Conv2d": dtype,
        }
        x, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 900])
        half = denoiser(x, t).epsilon
        single = load(name, tmp_path)(x, t).epsilon
        assert 0 < (half - single).abs().max() < 0.05 * single.abs().max()


def test_a_noisy_classifier_guides(tmp_path: Path) -> None:
    published("adm-imagenet256", tmp_path)
    published("adm-classifier256", tmp_path)
    denoiser = load_denoiser("adm-imagenet256", tmp_path, **SMALL)
    classifier = load_noisy_classifier("adm-classifier256", tmp_path, **SMALL_CLASSIFIER)
    labels = torch.tensor([0, 3])
    guide = LikelihoodGuide(classifier, ClassTask(), labels, scale=5.0)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([10, 700])
    step = 1e-3 * guide(State(x, t))

    def likelihood(x: Tensor) -> Tensor:
        return classifier(x, t).log_softmax(1).gather(1, labels[:, None])[:, 0]

    rise = likelihood(x + step) - likelihood(x)
    predicted = (guide(State(x, t)) / 5 * step).flatten(1).sum(1)
    torch.testing.assert_close(rise, predicted, rtol=0.05, atol=1e-6)
    assert not torch.equal(classifier(x, t), classifier(x, t + 50))
    guided, free = (sample(denoiser, [1, 2], g, DDIM(2)) for g in (guide, None))
    assert not torch.equal(guided, free)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["adm-imagenet256", "glide-base", "adm-classifier64"])
def test_wrong_files_are_refused_in_one_line_that_names_the_right_one(
    name: str, tmp_path: Path
) -> None:
    state = published(name, tmp_path)
    url = MODELS[name].url
    marker = tmp_path / "executed"
    key = "time_embed.0.weight"
    torch.save(Hostile(marker), tmp_path / "hostile.pt")
    torch.save({**state, key: state[key][:-1]}, tmp_path / "shape.pt")
    torch.save({k: v for k, v in state.items() if k != key}, tmp_path / "lacks.pt")
    torch.save({**state, "ema": state[key]}, tmp_path / "more.pt")
    whole = (tmp_path / Path(MODELS[name].file).name).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.pt").write_text("<html>404</html>")
    (tmp_path / "empty.pt").write_bytes(b"")
    swapped = "improved-cifar10" if name != "improved-cifar10" else "adm-imagenet256"
    published(swapped, tmp_path)
    cases = {
        "hostile.pt": "damaged or holds more than weights",
        "shape.pt": f"wrong shape {key}",
        "lacks.pt": f"missing {key}",
        "more.pt": "unexpected ema",
        "cut.pt": "damaged",
        "page.pt": "damaged",
        "empty.pt": "damaged",
        Path(MODELS[swapped].file).name: "does not fit",
        "absent.pt": "no checkpoint",
    }
    for file, reason in cases.items():
        with pytest.raises(CheckpointError, match=reason) as caught:
            load(name, tmp_path / file)
        message = str(caught.value)
        assert url in message, file
        assert "\n" not in message
    assert not marker.exists()


@pytest.mark.parametrize("sizes", [16, (16,), [16], "16", "16,"])
@pytest.mark.parametrize("multipliers", [(1, 2), [1, 2], "1,2", "1, 2"])
def test_flags_are_texts_as_published_or_numbers_as_in_files_of_settings(
    sizes: Any, multipliers: Any
) -> None:
    flags = UNetFlags(
        32, 32, 1, attention_resolutions=sizes, channel_mult=multipliers, num_head_channels=8
    )
    network = flags.network()
    attending = [key for key in network.state_dict() if key.endswith("qkv.weight")]
    assert attending == [
        "input_blocks.3.1.qkv.weight",
        "middle_block.1.qkv.weight",
        "output_blocks.0.1.qkv.weight",
        "output_blocks.1.1.qkv.weight",
    ]
    assert network.out[0].num_channels == 32


@pytest.mark.parametrize("wrong", [{"attention_resolutions": "16x8"}, {"channel_mult": [1, "two"]}])
def test_flags_that_are_no_numbers_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r'are numbers such as "32,16" or \(32, 16\), got'):
        UNetFlags(**wrong).network()
    with pytest.raises(ValueError, match="resolutions are sizes of maps, got 0"):
        UNetFlags(attention_resolutions=0).network()


def test_unknown_names_and_flags_and_no_path_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"choose from adm-imagenet64-cond, .*glide-base"):
        load_denoiser("adm-256", tmp_path)
    with pytest.raises(ValueError, match="choose from adm-classifier64"):
        load_noisy_classifier("adm-imagenet256", tmp_path)
    with pytest.raises(ValueError, match="no flag width; it has image_size"):
        load_denoiser("adm-imagenet256", tmp_path, width=3)
    with pytest.raises(CheckpointError, match=r"needs 256x256_diffusion_uncond.pt; fetch https://"):
        load_denoiser("adm-imagenet256")
    for dtype in ("float16", torch.int8):
        for load, known in (
            (load_denoiser, "adm-imagenet256"),
            (load_noisy_classifier, "adm-classifier64"),
        ):
            with pytest.raises(ValueError, match="dtype is a floating-point type such as"):
                load(known, tmp_path, dtype)
    with pytest.raises(ValueError, match="give channel_mult for image_size=48"):
        UNetFlags(image_size=48).network()
