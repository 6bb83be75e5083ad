"""Diffusers models: what they predict and on which schedule, from folders saved by diffusers."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    IFPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ppap.denoisers.diffusers_models import IFNetwork, encode_if_captions, load_schedule
from ppap.denoisers.public import load_denoiser
from ppap.diffusion.ddim import DDIM
from ppap.diffusion.denoiser import Denoiser
from ppap.diffusion.sampling import sample
from ppap.diffusion.schedule import cosine_schedule, linear_schedule
from ppap.files.checkpoints import CheckpointError
from ppap.files.images import to_uint8

WIDTH = 12
WEIGHTS = "diffusion_pytorch_model"

diffusers.utils.logging.set_verbosity_error()


def unet(**options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
    }
    return UNet2DModel(**settings | options).eval()


def if_unet(**options: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "encoder_hid_dim": WIDTH,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
    }
    return UNet2DConditionModel(**settings | options).eval()


def inputs(count: int = 2, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator), torch.tensor([7, 900])[:count]


@pytest.fixture(params=["pipeline", "flat"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """As pipelines save themselves, or as google/ddpm-cifar10-32 has it."""
    if request.param == "pipeline":
        DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path)
    else:
        unet().save_pretrained(tmp_path, safe_serialization=False)
        DDPMScheduler().save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_a_pipeline_predicts_what_diffusers_does(folder: Path) -> None:
    denoiser = load_denoiser(str(folder))
    x, t = inputs()
    expected = unet()(x, t).sample
    torch.testing.assert_close(denoiser(x, t).epsilon, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        load_denoiser("google/ddpm-cifar10-32", folder)(x, t).epsilon,
        expected,
        rtol=1e-4,
        atol=1e-5,
    )
    assert denoiser.shape == (3, 8, 8)
    assert not denoiser.learned_variance
    assert not any(part.training for part in denoiser.modules())
    assert denoiser.schedule.alphas_cumprod == pytest.approx(
        linear_schedule().alphas_cumprod, rel=1e-4
    )


@torch.no_grad()
def test_sampling_agrees_with_diffusers(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path)
    scheduler = DDIMScheduler(set_alpha_to_one=True, clip_sample=True)
    scheduler.save_pretrained(tmp_path)
    denoiser = load_denoiser(str(tmp_path))
    scheduler.set_timesteps(10)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    for t in scheduler.timesteps:
        noise = unet()(x, t).sample
        x = scheduler.step(noise, t, x, use_clipped_model_output=True).prev_sample
    own = sample(denoiser, [5], None, DDIM(10))
    torch.testing.assert_close(own, x.clamp(-1, 1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("prediction", "target"), [("epsilon", "epsilon"), ("sample", "x_0"), ("v_prediction", "v")]
)
def test_targets_and_schedules_come_from_the_scheduler(
    prediction: str, target: str, tmp_path: Path
) -> None:
    unet(out_channels=6, num_class_embeds=5).save_pretrained(tmp_path)
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction).save_pretrained(
        tmp_path
    )
    denoiser = load_denoiser(str(tmp_path))
    assert denoiser.target == target
    assert denoiser.learned_variance
    assert denoiser.schedule.alphas_cumprod == pytest.approx(
        cosine_schedule().alphas_cumprod, rel=2e-3, abs=1e-9
    )
    x, t = inputs()
    labels = torch.tensor([1, 4])
    fraction = denoiser.with_conditions(y=labels)(x, t).variance_fraction
    reference = unet(out_channels=6, num_class_embeds=5)(x, t, class_labels=labels).sample
    torch.testing.assert_close(fraction, reference[:, 3:], rtol=1e-4, atol=1e-5)


def stage(folder: Path, **options: Any) -> Denoiser:
    if_unet(**options).save_pretrained(folder / "unet")
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    scheduler.save_pretrained(folder / "scheduler")
    scheduler.save_pretrained(folder / "image_noising_scheduler")
    return load_denoiser(str(folder))


@torch.no_grad()
def test_a_first_if_stage_predicts_what_diffusers_does(tmp_path: Path) -> None:
    denoiser = stage(tmp_path)
    x, t = inputs()
    captions = torch.randn(2, 5, WIDTH)
    reference = if_unet()(x, t, encoder_hidden_states=captions).sample
    prediction = denoiser.with_conditions(prompt_embeds=captions)(x, t)
    torch.testing.assert_close(prediction.epsilon, reference[:, :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prediction.variance_fraction, reference[:, 3:], rtol=1e-4, atol=1e-5)
    one = denoiser.with_conditions(prompt_embeds=captions[:1])(x, t).epsilon
    torch.testing.assert_close(one[0], reference[0, :3])
    with pytest.raises(ValueError, match=r"with_conditions\(prompt_embeds"):
        denoiser(x, t)


@torch.no_grad()
def test_an_if_upsampler_sees_the_noised_image_and_its_level(tmp_path: Path) -> None:
    options = {"in_channels": 6, "class_embed_type": "timestep"}
    denoiser = stage(tmp_path, **options)
    assert denoiser.shape == (3, 8, 8)
    x, t = inputs()
    low_res = inputs(size=4)[0]
    captions = torch.randn(1, 5, WIDTH)
    resized = torch.nn.functional.interpolate(low_res, (8, 8), mode="bilinear", align_corners=True)
    reference = if_unet(**options)(
        torch.cat([x, resized], 1),
        t,
        encoder_hidden_states=captions.expand(2, -1, -1),
        class_labels=torch.tensor([250, 250]),
    ).sample
    told = denoiser.with_conditions(
        prompt_embeds=captions, low_res=low_res, noise_level=torch.tensor([250])
    )
    torch.testing.assert_close(told(x, t).epsilon, reference[:, :3])
    with pytest.raises(ValueError, match="from_uint8"):
        told.with_conditions(low_res=to_uint8(low_res))(x, t)
    captioned = denoiser.with_conditions(prompt_embeds=captions)
    for some in ({}, {"low_res": low_res}, {"noise_level": torch.tensor([250])}):
        with pytest.raises(ValueError, match="an up-sampling stage of IF needs"):
            captioned.with_conditions(**some)(x, t)
    with pytest.raises(ValueError, match="no other takes them"):
        IFNetwork(if_unet())(x, t, captions, low_res)
    noising = load_schedule(tmp_path, "image_noising_scheduler")
    assert noising.alphas_cumprod == pytest.approx(cosine_schedule().alphas_cumprod, rel=2e-3)


@torch.no_grad()
def test_if_captions_are_encoded_by_its_own_text_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁dog"]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    settings = T5Config(
        vocab_size=len(pieces), d_model=WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    encoder = T5EncoderModel(settings).eval()
    IFPipeline(
        tokenizer,
        encoder,
        if_unet(),
        DDPMScheduler(),
        None,
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(tmp_path)
    embeddings = encode_if_captions(tmp_path, ["", "a dog"])
    assert embeddings.shape == (2, 77, WIDTH)
    ids = torch.tensor([[1] + 76 * [0], [4, 5, 1] + 74 * [0]])
    mask = torch.tensor([[1] + 76 * [0], [1, 1, 1] + 74 * [0]])
    reference = encoder(ids, attention_mask=mask)[0]
    torch.testing.assert_close(embeddings, reference, rtol=1e-4, atol=1e-5)
    denoiser = load_denoiser(str(tmp_path)).with_conditions(
        prompt_embeds=encode_if_captions(tmp_path)
    )
    assert sample(denoiser, [1, 2], None, DDIM(2)).isfinite().all()
    with pytest.raises(CheckpointError, match="no IF text encoder") as caught:
        encode_if_captions(tmp_path / "unet")
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_attention_under_its_old_names_loads(tmp_path: Path) -> None:
    """Files written before diffusers renamed them, google/ddpm-cifar10-32 among them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    unet().save_pretrained(tmp_path)
    DDPMScheduler().save_pretrained(tmp_path)
    state = {}
    for key, value in unet().state_dict().items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")  # noqa: PLW2901
        state[key] = value
    assert any(".proj_attn." in key for key in state)
    save_file(state, tmp_path / f"{WEIGHTS}.safetensors", {"format": "pt"})
    x, t = inputs()
    found = load_denoiser(str(tmp_path))(x, t).epsilon
    torch.testing.assert_close(found, unet()(x, t).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(dtype: torch.dtype, tmp_path: Path) -> None:
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path)
    x, t = inputs()
    half = load_denoiser(str(tmp_path), dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    single = load_denoiser(str(tmp_path))(x, t).epsilon
    found = half(x, t).epsilon
    assert found.dtype == torch.float32
    assert 0 < (found - single).abs().max() < 0.05 * single.abs().max()
    cast = load_denoiser(str(tmp_path)).to(dtype)
    torch.testing.assert_close(cast(x, t).epsilon, found)


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("hostile", "damaged"),
        ("cut", "damaged"),
        ("absent", "weights are missing"),
        ("lacks", "does not fit its own config: .*conv_in"),
        ("shape", "another network"),
        ("nan", r"holds NaN in conv_in\.bias: a training went astray"),
        ("json", "config.json is damaged"),
        ("scheduler", "holds neither scheduler/scheduler_config.json"),
        ("kind", "holds a VQModel; what can be used is UNet2DModel"),
        ("target", "predicts 'flow_prediction'"),
        ("betas", "noise schedule cannot be used"),
        ("unnamed", "has the scheduler None, whose noise schedule cannot be used"),
        ("stranger", "scheduler HomemadeScheduler, whose noise schedule cannot be used"),
        ("flow", "is for flow matching"),
        ("no size", "has the sample_size None in its config.json; write there"),
        ("no height", r"has the sample_size \[0, 8\]"),
        ("more channels", "makes 5 channels of 3"),
        ("latents", "denoises the latents of its vqvae"),
        ("mark", "begins with a byte order mark"),
    ],
)
def test_wrong_folders_are_refused_in_one_line(damage: str, reason: str, tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path, safe_serialization=False)
    DDPMScheduler().save_pretrained(tmp_path)
    weights, config = tmp_path / f"{WEIGHTS}.bin", tmp_path / "config.json"
    scheduler = tmp_path / "scheduler_config.json"
    state = unet().state_dict()

    def write(path: Path, text: str) -> None:
        path.parent.mkdir()
        path.write_text(text)

    def change(path: Path, **settings: Any) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    {
        "hostile": lambda: weights.write_bytes(pickle.dumps(Hostile(tmp_path / "run"), protocol=2)),
        "cut": lambda: weights.write_bytes(weights.read_bytes()[:-100]),
        "absent": weights.unlink,
        "lacks": lambda: torch.save(
            {key: value for key, value in state.items() if key != "conv_in.bias"}, weights
        ),
        "shape": lambda: torch.save(state | {"conv_in.bias": torch.zeros(3)}, weights),
        "nan": lambda: torch.save(state | {"conv_in.bias": torch.full((8,), torch.nan)}, weights),
        "json": lambda: config.write_text("{"),
        "scheduler": scheduler.unlink,
        "kind": lambda: change(config, _class_name="VQModel"),
        "target": lambda: change(scheduler, prediction_type="flow_prediction"),
        "betas": lambda: change(scheduler, beta_schedule="unheard_of"),
        "unnamed": lambda: change(scheduler, _class_name=None),
        "stranger": lambda: change(scheduler, _class_name="HomemadeScheduler"),
        "flow": lambda: change(
            scheduler, _class_name="UniPCMultistepScheduler", use_flow_sigmas=True
        ),
        "no size": lambda: change(config, sample_size=None),
        "no height": lambda: change(config, sample_size=[0, 8]),
        "more channels": lambda: unet(out_channels=5).save_pretrained(
            tmp_path, safe_serialization=False
        ),
        "latents": lambda: write(tmp_path / "vqvae" / "config.json", "{}"),
        "mark": lambda: config.write_text(config.read_text(), encoding="utf-8-sig"),
    }[damage]()
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_denoiser(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "kind",
    ["FlowMatchEulerDiscrete", "EDMEuler", "EDMDPMSolverMultistep", "KarrasVe", "ScoreSdeVe",
     "CMStochasticIterative", "VQDiffusion", "IPNDM", "LCM", "TCD", "DDPMWuerstchen"],
)  # fmt: skip
def test_schedules_of_other_families_are_refused(kind: str, tmp_path: Path) -> None:
    options = {"num_vec_classes": 8} if kind == "VQDiffusion" else {}
    getattr(diffusers, f"{kind}Scheduler")(**options).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{kind}Scheduler, whose noise schedule cannot be"):
        load_schedule(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("EulerDiscrete", {"beta_schedule": "scaled_linear"}),
        ("DPMSolverMultistep", {"beta_schedule": "squaredcos_cap_v2"}),
        ("PNDM", {}),
        ("DDIMParallel", {"trained_betas": [0.01, 0.02, 0.3]}),
        ("UnCLIP", {}),
        ("DEISMultistep", {"beta_start": 0.001}),
        ("CogVideoXDDIM", {"snr_shift_scale": 3.0, "rescale_betas_zero_snr": False}),
    ],
)
def test_a_schedule_is_the_schedulers_own_table(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**options)
    scheduler.save_pretrained(tmp_path)
    levels = load_schedule(tmp_path).alphas_cumprod
    assert levels == pytest.approx(scheduler.alphas_cumprod.double().numpy(), rel=1e-3, abs=1e-12)


def test_noise_levels_shown_for_timesteps_are_refused(tmp_path: Path) -> None:
    diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction"
    ).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="noise levels in place of timesteps"):
        load_schedule(tmp_path)


def test_what_an_early_configuration_predicts_is_not_forgotten(tmp_path: Path) -> None:
    unet().save_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "DDPMScheduler", "predict_epsilon": False}), "utf-8-sig"
    )
    assert load_denoiser(str(tmp_path)).target == "x_0"


def test_images_need_not_be_square(tmp_path: Path) -> None:
    unet(sample_size=[8, 16]).save_pretrained(tmp_path)
    DDPMScheduler().save_pretrained(tmp_path)
    assert load_denoiser(str(tmp_path)).shape == (3, 8, 16)


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"fetch https://huggingface\.co/google") as caught:
        load_denoiser("google/ddpm-cifar10-32")
    assert "\n" not in str(caught.value)


def test_a_folder_may_be_a_path(folder: Path) -> None:
    assert load_denoiser(folder).shape == (3, 8, 8)


def test_flags_are_not_for_diffusers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave out image_size"):
        load_denoiser(str(tmp_path), image_size=3)


def test_variances_that_are_no_share_of_a_range_are_refused(tmp_path: Path) -> None:
    """Read as a share between two logarithms they would be some other variance."""
    unet(out_channels=6).save_pretrained(tmp_path)
    for kind in ("learned_range", "learned"):
        DDPMScheduler(variance_type=kind).save_pretrained(tmp_path)
        if kind == "learned_range":
            assert load_denoiser(str(tmp_path)).learned_variance
            continue
        with pytest.raises(CheckpointError, match="predicts variances as they are"):
            load_denoiser(str(tmp_path))
