"""Tables of tuned configurations: nearest shape, then defaults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
    assert not uses_op("auto", x, "transfer_loss")
    assert not uses_op("torch", x, "transfer_loss")
    assert select("transfer_loss", x, {"rows": 2, "classes": 2}, force=False) is None
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        uses_op("triton", x, "transfer_loss")


class OnGpu(NamedTuple):
    """What dispatch looks at of a tensor, on a GPU that is not here."""

    dtype: torch.dtype = torch.bfloat16
    is_cuda: bool = True
    device: torch.device = torch.device("cuda", 0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A GPU with measurements of one kernel; told whether a CUDA graph is being captured."""
    graph = Entry({"m": 1024, "n": 64}, "triton", {"BLOCK": 1}, True, "torch", ("bfloat16",))
    always = Entry({"m": 1024, "n": 64}, "triton", {"BLOCK": 2}, True, "triton", ("float16",))
    shipped = Entry({"m": 1024, "n": 64}, "triton", {"BLOCK": 4}, False)
    entries = {"one": (graph, always), "other": (shipped,)}
    monkeypatch.setattr(dispatch, "_gpu", lambda device: "measured")
    monkeypatch.setattr(dispatch, "table", lambda gpu: entries)

    def capturing(whether: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: whether)

    capturing(False)
    return capturing


NEARBY, FAR = {"m": 2048, "n": 64, "k": 3}, {"m": 64, "n": 64, "k": 3}


def test_triton_is_chosen_in_a_graph_where_it_was_faster_there(
    measured: Callable[[bool], None],
) -> None:
    assert not dispatch.select("one", OnGpu(), NEARBY, force=False)  # type: ignore[arg-type]
    measured(True)
    found = dispatch.select("one", OnGpu(), NEARBY, force=False)  # type: ignore[arg-type]
    assert found is not None
    assert found.config == {"BLOCK": 1}


def test_calls_before_a_capture_choose_as_it_will(measured: Callable[[bool], None]) -> None:
    """A kernel that is first launched within a capture cannot be loaded there."""
    with dispatch.as_captured():
        assert uses_op("auto", OnGpu(), "one")  # type: ignore[arg-type]
        found = select("one", OnGpu(), NEARBY, force=False)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError), dispatch.as_captured():
            raise ZeroDivisionError
        assert select("one", OnGpu(), NEARBY, force=False) == found  # type: ignore[arg-type]
    assert found is not None
    assert found.config == {"BLOCK": 1}
    assert select("one", OnGpu(), NEARBY, force=False) is None  # type: ignore[arg-type]


def test_a_measurement_speaks_for_its_type_and_shapes_nearby_alone(
    measured: Callable[[bool], None],
) -> None:
    measured(True)
    half, single = OnGpu(torch.float16), OnGpu(torch.float32)
    assert dispatch.select("one", half, NEARBY, force=False).config == {"BLOCK": 2}  # type: ignore[union-attr,arg-type]
    assert dispatch.select("one", single, NEARBY, force=False) is None  # type: ignore[arg-type]
    assert dispatch.select("one", OnGpu(), FAR, force=False) is None  # type: ignore[arg-type]


def test_what_nobody_measured_is_left_to_torch_unless_forced(
    measured: Callable[[bool], None],
) -> None:
    measured(True)
    assert dispatch.select("other", OnGpu(), NEARBY, force=False) is None  # type: ignore[arg-type]
    assert not uses_op("auto", OnGpu(), "other")  # type: ignore[arg-type]
    found = dispatch.select("other", OnGpu(), FAR, force=True)  # type: ignore[arg-type]
    assert found is not None
    assert found.config == {"BLOCK": 4}
    assert uses_op("triton", OnGpu(), "other")  # type: ignore[arg-type]


def test_the_operator_is_entered_only_where_triton_may_be_chosen(
    measured: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert uses_op("auto", OnGpu(), "one")  # type: ignore[arg-type]
    only_graphs = Entry({"m": 1}, "triton", {}, True, "torch")
    monkeypatch.setattr(dispatch, "table", lambda gpu: {"one": (only_graphs,)})
    assert not uses_op("auto", OnGpu(), "one")  # type: ignore[arg-type]
    measured(True)
    assert uses_op("auto", OnGpu(), "one")  # type: ignore[arg-type]


def test_every_measured_table_is_whole() -> None:
    for path in (Path(dispatch.__file__).parent / "configs").glob("nvidia-*.json"):
        document = json.loads(path.read_text())
        assert dispatch.slug(document["gpu"]) == path.stem
        assert document["kernels"].keys() <= table("default").keys()
        for kernel, entries in document["kernels"].items():
            tiles = table("default")[kernel][0].config.keys()
            for entry in entries:
                assert entry["config"].keys() == tiles
                assert entry["dtypes"]
                faster = entry["triton_us"] <= entry["torch_us"]
                assert faster or entry["backend"] == "torch"
                assert (entry["eager"] == "triton") == (
                    entry["triton_eager_us"] <= entry["torch_eager_us"]
                )


def test_the_choice_is_a_constant_to_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"one": (Entry({"m": 1}, "triton", {}, True),)}
    monkeypatch.setattr(dispatch, "_gpu", lambda device: "measured")
    monkeypatch.setattr(dispatch, "table", lambda gpu: tables)

    @torch.compile(backend="eager", fullgraph=True)
    def add(x: torch.Tensor) -> torch.Tensor:
        chosen = dispatch._may_win("one", x.device.index, torch.compiler.is_compiling())
        return x + (1 if chosen else 2)

    assert torch.equal(add(torch.zeros(2)), torch.ones(2))
