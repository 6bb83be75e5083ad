"""Tables of tuned configurations: nearest shape, then defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ppap_kernels import dispatch
from ppap_kernels.dispatch import Entry, nearest, select, table, uses_op


def test_the_shipped_defaults_claim_no_measurement() -> None:
    entries = [entry for kernel in table("default").values() for entry in kernel]
    assert entries
    assert not any(entry.tuned for entry in entries)


def test_an_unknown_gpu_takes_the_defaults() -> None:
    assert table("NVIDIA Imaginary 9000") == table("default")


def test_a_gpu_with_measurements_takes_them_and_defaults_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = json.dumps({"tuned": False, "kernels": {"one": [], "two": []}})
    measured = {"shape": {"m": 8}, "backend": "torch", "config": {"BLOCK": 1}}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "default.json").write_text(shipped)
    document = {"tuned": True, "kernels": {"two": [measured]}}
    (tmp_path / "configs" / "nvidia-h100-80gb-hbm3.json").write_text(json.dumps(document))
    monkeypatch.setattr(dispatch.resources, "files", lambda package: tmp_path)
    entries = table.__wrapped__("NVIDIA H100 80GB HBM3")
    assert entries == {"one": (), "two": (Entry({"m": 8}, "torch", {"BLOCK": 1}, True),)}


def test_the_nearest_shape_is_nearest_in_ratio() -> None:
    entries = tuple(Entry({"m": m, "n": 64}, "triton", {"BLOCK": m}, False) for m in (16, 1024))
    assert nearest(entries, {"m": 100, "n": 64, "k": 7}).config["BLOCK"] == 16
    assert nearest(entries, {"m": 200, "n": 64, "k": 7}).config["BLOCK"] == 1024
    assert nearest(entries, {"m": 0, "n": 64, "k": 7}).config["BLOCK"] == 16


def test_a_cpu_runs_torch() -> None:
    x = torch.zeros(2, 2)
    assert not uses_op("auto", x)
    assert not uses_op("torch", x)
    assert select("transfer_loss", x, {"rows": 2, "classes": 2}, force=False) is None
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        uses_op("triton", x)
