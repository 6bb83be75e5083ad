"""The public names: loaded when they are used, documented, complete."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ppap

NAMES = """
Denoiser Predictor Adapter Lora Biases Norms Full Head Peft ppap_adapter full_adapter ExpertBank
NoiseRanges Training Distillation Supervision transfer synthesize sample DDIM DDPM DPMSolver
ClassTask DepthTask SegmentationTask SimilarityTask LikelihoodGuide SumOfGuides naive_guide
linear_schedule cosine_schedule load_denoiser load_predictor load_noisy_classifier FastPath
"""


def test_what_the_documentation_promises_is_there() -> None:
    assert set(NAMES.split()) <= set(ppap.__all__)
    assert set(ppap.__all__) <= set(dir(ppap))


@pytest.mark.parametrize("name", ppap.__all__)
def test_a_name_is_documented(name: str) -> None:
    found = getattr(ppap, name)
    assert found.__name__.removeprefix("ppap.") == name  # a module, such as guidance, has all of it
    assert found.__doc__
    assert name in (ppap.__doc__ or "")


def test_importing_the_package_loads_no_torch() -> None:
    program = (
        "import ppap, sys; assert 'torch' not in sys.modules; "
        "ppap.DDIM; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="DDIN"):
        _ = ppap.DDIN  # type: ignore[attr-defined]
