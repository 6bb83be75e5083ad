"""Tuning finds the fastest correct configuration, and the dispatcher reads what it wrote."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import torch
from ppap_kernels import dispatch, tune
from ppap_kernels.dispatch import Entry
from torch import Tensor

SHAPE = {"m": 48, "n": 32, "k": 16}
SHIPPED = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
CPU = torch.device("cpu")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """Stands for the kernel: right but for tiles of 128 rows, refused for 64 columns."""
    seen: list[dict[str, int]] = []

    def launch(
        x: Tensor, p: Tensor, q: Tensor, r: Tensor, bias: None, scale: float, config: dict[str, int]
    ) -> tuple[Tensor, Tensor]:
        seen.append(config)
        if config["BLOCK_N"] == 64:
            raise RuntimeError("out of resource: shared memory")
        wrong = config["BLOCK_M"] == 128
        return torch.addmm(x @ p, x @ q, r, alpha=scale) * (2.0 if wrong else 1.0), x @ q

    from ppap_kernels import lora_linear, triton_matmul

    monkeypatch.setattr(triton_matmul, "low_rank_matmul", launch)
    usual = Entry(SHAPE, "triton", SHIPPED | {"BLOCK_M": 64}, tuned=False)
    monkeypatch.setattr(sys.modules[lora_linear.__module__], "select", lambda *_: usual)
    return seen


def timer(launched: list[dict[str, int]], of_torch: float) -> Callable[[Callable[[], Any]], float]:
    """Larger tiles of rows are faster, one warp count is."""

    def measure(function: Callable[[], Any]) -> float:
        before = len(launched)
        function()
        if len(launched) == before:
            return of_torch
        config = launched[-1]
        return 1000 / config["BLOCK_M"] + config["num_warps"] + config["num_stages"] / 10

    return measure


def test_the_fastest_correct_candidate_wins(launched: list[dict[str, int]]) -> None:
    entry = Entry(SHAPE, "triton", SHIPPED, tuned=False)
    said: list[str] = []
    clock = timer(launched, of_torch=50.0)
    found = tune.tune("low_rank_matmul", entry, clock, torch.float32, CPU, said.append)
    assert found is not None
    assert launched[0] == SHIPPED
    assert (found["config"]["BLOCK_M"], found["config"]["num_warps"]) == (64, 4)
    assert found["backend"] == "triton"
    assert found["eager"] == "triton"
    assert found["dtypes"] == ["float32"]
    assert found["triton_us"] == pytest.approx(1000 / 64 + 4.2)
    assert any("wrong by 1.0e+00" in line for line in said)
    assert any("shared memory" in line for line in said)
    slow = tune.tune("low_rank_matmul", entry, timer(launched, 1.0), torch.float32, CPU)
    assert slow is not None
    assert slow["backend"] == "torch"


def test_what_is_written_the_dispatcher_reads(
    launched: list[dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "NVIDIA Test-100 80GB"
    target = tmp_path / "configs" / f"{dispatch.slug(name)}.json"
    target.parent.mkdir()
    default = json.loads((tune.CONFIGS / "default.json").read_text())
    small = {"shape": SHAPE, "backend": "triton", "config": SHIPPED}
    default["kernels"]["low_rank_matmul"] = [small]
    (target.parent / "default.json").write_text(json.dumps(default))
    monkeypatch.setattr(dispatch.resources, "files", lambda package: tmp_path)
    dispatch.table.cache_clear()
    try:
        arguments = ["--kernels", "low_rank_matmul", "--target", str(target)]
        assert tune.main(arguments, timer(launched, 50.0)) == 0
        (entry,) = dispatch.table(name)["low_rank_matmul"]
        assert entry.tuned
        assert entry.config["BLOCK_M"] == 64
        assert not dispatch.table(name)["merge_lora"][0].tuned
    finally:
        dispatch.table.cache_clear()


def test_what_is_not_measured_now_stays_in_the_shipped_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(us: float, dtype: str) -> dict[str, Any]:
        return {"shape": {"m": 8}, "dtypes": [dtype], "triton_us": us}

    monkeypatch.setattr(tune, "CONFIGS", tmp_path)
    target = tmp_path / "gpu-9.json"
    tune.write_table(target, "GPU 9", torch.float32, {"one": [line(1, "float32")]})
    tune.write_table(target, "GPU 9", torch.float32, {"two": [line(2, "float32")]})
    tune.write_table(tmp_path / "new.json", "GPU 9", torch.bfloat16, {"one": [line(3, "bfloat16")]})
    found = json.loads((tmp_path / "new.json").read_text())
    assert found["kernels"]["one"] == [line(3, "bfloat16"), line(1, "float32")]
    assert found["kernels"]["two"] == [line(2, "float32")]
    tune.write_table(target, "GPU 9", torch.float32, {"one": [line(4, "float32")]})
    found = json.loads(target.read_text())
    assert found["kernels"]["one"] == [line(4, "float32")]
    assert found["note"].count("Measured in float32") == 2  # of now, and of what stays


def test_a_kernel_can_win_in_a_graph_and_lose_as_a_call(launched: list[dict[str, int]]) -> None:
    entry = Entry(SHAPE, "triton", SHIPPED, tuned=False)
    captured, eager = timer(launched, of_torch=50.0), timer(launched, of_torch=1.0)
    found = tune.tune(
        "low_rank_matmul", entry, eager, torch.float32, CPU, captured=captured
    )  # fmt: skip
    assert found is not None
    assert (found["backend"], found["eager"]) == ("triton", "torch")
    assert (found["torch_us"], found["torch_eager_us"]) == (50.0, 1.0)


@pytest.mark.parametrize("kernel", tune.CANDIDATES)
def test_candidates_are_many_and_different(kernel: str) -> None:
    shipped = dispatch.table("default")[kernel][0].config
    found = list(tune.candidates(kernel, shipped))
    assert found[0] == shipped
    assert len(found) == len({tuple(sorted(config.items())) for config in found}) > 3


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert capsys.readouterr().err == "error: no GPU here; run this where one is\n"
