"""One command for a machine with a GPU, rehearsed where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ppap_kernels.operations import lora_linear

from bench import training_steps
from bench.gpu import __main__ as command_line
from bench.gpu import crew as crew_of
from bench.gpu import guided, hardware, kernel_times, session
from bench.gpu.accuracy import CALLS, Check, odd_checks, real_checks, run_check
from bench.gpu.end_to_end import end_to_end
from bench.gpu.hardware import interleaved, row_of
from bench.gpu.session import Deadline, OutOfTimeError, Record, alarm
from bench.gpu.sizes import GPU, REHEARSAL
from bench.gpu.tuning import tuned_entries, within
from ppap.compute import precision as precisions

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
OPTIONAL = ("diffusers", "torch_fidelity", "pytest", "pandas", "seaborn", "matplotlib", "scipy",
            "ray", "tabulate")  # fmt: skip
"""What the command does without."""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_the_rehearsal_needs_no_optional_packages(tmp_path: Path) -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in OPTIONAL)
    stages = ("--seconds", "1500", "--stages", "correctness", "kernels", "tune")
    code = f"import sys\n{blocked}from bench.gpu.__main__ import main\nraise SystemExit(main())"
    done = python("-c", code, "--out", str(tmp_path), "--rehearse", *stages)
    assert done.returncode == 0, done.stderr
    files = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(files) == {"correctness", "kernels", "tune"}
    for name, record in files.items():
        assert record["rows"], name
        assert record["errors"] == [], name
        assert record["left_out"] == [], name
        assert record["machine"]["torch"] == torch.__version__
    assert all(row["ok"] for row in files["correctness"]["rows"])
    document = json.loads((tmp_path / "configs" / "rehearsal.json").read_text())
    assert document["tuned"]
    assert "low_rank_matmul" in document["kernels"]
    assert done.stdout.count("0 failed, 0 left out") == 3


def test_guided_sampling_and_training_are_timed_in_every_way_but_those_that_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing takes ten seconds; ``nox -s gpu -- --rehearse`` runs the other ways as well."""
    ways = "reference", "plain", "plain, channels-last"
    steps = "reference", "loop over experts", "grouped"
    monkeypatch.setattr(guided, "WAYS", ways)
    monkeypatch.setattr(training_steps, "WAYS", steps)
    record = record_at(tmp_path)
    end_to_end(record, REHEARSAL, Deadline.after(1e6))
    assert record.errors == []
    assert record.left_out == []
    whats = {row["what"] for row in record.rows}
    assert len(whats) == 8
    for what in whats:
        own = {row["way"] for row in record.rows if row["what"] == what and "way" in row}
        assert not own or own & {"plain", "grouped"}, what
    losses = next(row["ways"] for row in record.rows if row["what"] == "first training losses")
    assert {way for way in steps if way in losses} == set(steps)
    calls = [row for row in record.rows if row["what"] == "repeated calls"]
    assert [row["difference"]["largest"] for row in calls] == [0, 0]


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_fast_path_is_timed_in_bfloat16_too(
    native: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU that would emulate it rehearses in float32."""
    for module in (guided, precisions):
        monkeypatch.setattr(module, "native_bfloat16", lambda: native)
    work = guided.Guided("resnet", "bf16", REHEARSAL)
    assert "fast path" in work.ways
    assert work.precision == work.fast.precision == precision


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command_line.main(["--out", str(tmp_path)]) == 1
    assert "no GPU here" in capsys.readouterr().err


def test_after_a_lost_gpu_a_new_process_does_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that lost its GPU can compute nothing more on it, torch's allocator included."""
    commands: list[list[str]] = []
    stages: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command_line, "watch_over", lambda seconds: None)
    monkeypatch.setattr(command_line, "run_stage", lambda stage, *_: stages.append(stage) or stage)
    monkeypatch.setattr(hardware, "about", lambda: {"cpu": "one"})
    monkeypatch.setattr(hardware, "still_works", lambda: not stages)
    monkeypatch.setattr(
        command_line.subprocess, "run", lambda command, check: commands.append(command)
    )
    assert command_line.main(["--out", str(tmp_path), "--seconds", "60"]) == 0
    assert stages == ["correctness"]
    (command,) = commands
    assert command[command.index("--stages") + 1 :] == ["end-to-end", "kernels", "tune"]
    assert 0 < float(command[command.index("--seconds") + 1]) <= 60
    assert "lost its GPU" in capsys.readouterr().out


def record_at(folder: Path) -> Record:
    return Record(folder / "stage.json", {"cpu": "one"})


def test_what_was_found_is_on_disk_at_once_and_a_failure_stops_nothing(tmp_path: Path) -> None:
    record = record_at(tmp_path)
    record.add({"ms": 1.0})
    assert json.loads(record.path.read_text())["rows"] == [{"ms": 1.0}]
    assert record.attempt("a way", lambda: 1 / 0) is None
    record.leave_out("another", "no time left")
    document = json.loads(record.path.read_text())
    assert document["errors"][0]["error"] == "ZeroDivisionError"
    assert "1 / 0" in document["errors"][0]["traceback"]
    assert document["left_out"] == ["another: no time left"]
    assert record.summary() == "stage: 1 rows, 1 failed, 1 left out"


def test_an_alarm_breaks_off_what_catches_every_exception(tmp_path: Path) -> None:
    def stubborn() -> None:
        while True:
            time.sleep(0.01)

    began = time.monotonic()
    with pytest.raises(OutOfTimeError), alarm(0.05):
        record_at(tmp_path).attempt("stubborn", stubborn)
    assert time.monotonic() - began < 30
    with alarm(1e6):
        pass


def test_a_share_is_of_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.time, "time", lambda: 100.0)
    assert Deadline.after(40).share(0.25).left == pytest.approx(10)
    assert Deadline(at=90).share(0.5).left == 0


def test_ways_take_turns_forwards_and_back() -> None:
    log: list[str] = []
    ways: dict[str, Callable[[], Any]] = {n: lambda n=n: log.append(n) for n in "abc"}  # type: ignore[misc]
    found = interleaved(ways, 2)
    assert "".join(log) == "abccba" * 2
    assert [len(calls) for calls in found.values()] == [4, 4, 4]
    row = row_of([0.1, 0.1], [0.2, 0.2], images=5)
    assert (row["ratio"], row["ms"], row["images_per_second"]) == (2, 100, 50)


def test_every_operation_is_checked_in_every_mode() -> None:
    names = {check.name for check in (*odd_checks(), *real_checks(CPU))}
    assert names == {*CALLS, "grouped_lora_conv"}
    assert set(GPU.modes) == {"bf16", "fp32", "tf32", "fp16"}


def test_a_wrong_result_is_found_and_an_error_is_kept() -> None:
    problem = lora_linear.problem(5, 7, 6, 2, gpu=False)

    def check(call: Callable[..., torch.Tensor]) -> Check:
        factors = ("w", "a", "b", "bias")
        return Check("x", "", problem.make, call, problem.reference, factors)

    right = list(run_check(check(lambda t, _: problem.reference(t)), "fp32", CPU))
    assert [row["pass"] for row in right] == ["forward", "input gradient", "full backward"] * 2
    assert all(row["ok"] for row in right)
    assert set(right[2]["errors"]) == {"dx", "dw", "da", "db", "dbias"}
    wrong = list(run_check(check(lambda t, _: problem.reference(t) * 1.01), "fp32", CPU))
    assert not any(row["ok"] for row in wrong)

    def unwritten(t: dict[str, torch.Tensor], _: str) -> torch.Tensor:
        return problem.reference(t) * torch.nan

    assert not any(row["ok"] for row in run_check(check(unwritten), "fp32", CPU))

    def broken(t: dict[str, torch.Tensor], _: str) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert "illegal memory access" in next(run_check(check(broken), "fp32", CPU))["failed"]


def test_a_job_is_done_once_and_a_lost_gpu_costs_that_job_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def job(name: str, failure: str = "") -> crew_of.Job:
        def run() -> Iterator[dict[str, Any]]:
            done.append(name)
            if failure:
                raise RuntimeError(failure)
            yield {"ok": True, "operation": name}

        return f"check {name}", run

    lost = "CUDA error: an illegal memory access was encountered"
    every = [job("a"), job("b", "no"), job("c", lost), job("d")]
    monkeypatch.setattr(crew_of, "jobs", lambda sizes: iter(every))

    class StartedAnewError(Exception):
        pass

    def execute(*_: Any) -> None:
        raise StartedAnewError

    monkeypatch.setattr(crew_of.os, "execv", execute)
    with pytest.raises(StartedAnewError):
        crew_of.take_jobs(REHEARSAL, tmp_path, 0, Deadline.after(1e6))
    assert done == ["a", "b", "c"]
    crew_of.take_jobs(REHEARSAL, tmp_path, 0, Deadline.after(1e6))
    crew_of.take_jobs(REHEARSAL, tmp_path, 1, Deadline.after(1e6))
    assert done == ["a", "b", "c", "d"]
    every.append(job("e"))
    record = record_at(tmp_path)
    crew_of.gather(record, REHEARSAL, tmp_path)
    assert [row["operation"] for row in record.rows] == ["a", "d"]
    assert [error["what"] for error in record.errors] == ["check b", "check c"]
    assert record.left_out == ["check e: no time left"]
    assert set(record.notes["seconds"]) == {f"check {name}" for name in "abcd"}


def test_tuning_tries_the_shipped_configuration_whatever_the_time() -> None:
    kernel, entry = next(tuned_entries(GPU))
    tried: list[dict[str, int]] = []
    assert list(within(Deadline(at=0), kernel, entry, tried, 9)) == [dict(entry.config)] == tried
    many = list(within(Deadline.after(1e6), kernel, entry, [], 9))
    assert many[0] == dict(entry.config)
    assert len(many) == 9
    assert list(within(Deadline.after(1e6), kernel, entry, [], 9)) == many


def test_a_call_is_captured_after_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Stream:
        def wait_stream(self, other: Stream) -> None:
            log.append("wait")

    class Graph:
        def replay(self) -> None:
            log.append("replay")

    @contextmanager
    def within_it(what: Any) -> Iterator[None]:
        log.append(f"in {type(what).__name__}")
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", within_it)
    monkeypatch.setattr(torch.cuda, "graph", within_it)
    monkeypatch.setattr(
        kernel_times, "as_captured", lambda: within_it("calls that choose as captured")
    )
    replay = kernel_times.captured(lambda: log.append("call"))
    replay()
    assert log == [
        "wait", "in Stream", "in str", "call", "call", "call", "wait", "in Graph", "call", "replay"
    ]  # fmt: skip


def test_why_a_call_could_not_be_captured_is_in_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(_: Callable[[], Any]) -> Callable[[], Any]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(kernel_times, "captured", captured)
    found = kernel_times._as_graph(lambda: None, torch.device("cuda"), 1)
    assert found["graph_us"] is None
    assert "operation not permitted" in found["graph_failed"]
