"""bfloat16 where it is native; elsewhere it is refused, or float32 is chosen and said to be."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from ppap.compute import precision
from ppap.compute.precision import PrecisionError, autocast, check_precision, choose_precision


@pytest.fixture(params=[True, False], ids=["native", "emulated"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(precision, "native_bfloat16", lambda: request.param)
    monkeypatch.setattr(precision, "quick_bfloat16", lambda: request.param)
    return bool(request.param)


def test_emulated_bfloat16_is_refused_in_one_line_that_names_the_processor(native: bool) -> None:
    check_precision("fp32", "cpu")
    if native:
        check_precision("bf16", "cpu")
        return
    for refuse in (check_precision, autocast, choose_precision):
        with pytest.raises(PrecisionError, match="use precision='fp32'") as refused:
            refuse("bf16", "cpu")
        assert precision.cpu_model() in str(refused.value)
        assert "\n" not in str(refused.value)


def test_automatic_precision_says_when_it_is_float32(
    native: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_precision("auto", "cpu") == ("bf16" if native else "fp32")
    lines = [] if native else [f"{precision.cpu_model()} ({precision.instruction_set()})"]
    assert [line.split(" has no ")[0] for line in caplog.messages] == lines


def test_automatic_precision_is_float32_where_bfloat16_is_slower(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "quick_bfloat16", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert choose_precision("auto", "cpu") == "fp32"
        assert choose_precision("bf16", "cpu") == "bf16"  # for whoever asks for it
    (line,) = caplog.messages
    assert line.endswith("gains nothing by its bfloat16: computing in float32")


def test_a_network_computes_in_the_precision_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "native_bfloat16", lambda: True)
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    with autocast("bf16", "cpu"):
        assert layer(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), autocast("fp32", "cpu"):
        assert layer(x).dtype == torch.bfloat16  # an autocast around it is left alone
    with autocast("fp32", "cpu"):
        assert layer(x).dtype == torch.float32


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ValueError, match="unknown precision 'fp64'; choose from"):
        check_precision("fp64", "cpu")  # type: ignore[arg-type]


def test_a_gpu_is_asked_for_native_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An old GPU")
    with pytest.raises(PrecisionError, match="An old GPU would emulate bfloat16"):
        check_precision("bf16", "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    check_precision("bf16", "cuda")
