"""What a call spends before its first step, read off the times at which its steps end."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
import torch

from bench import calls
from bench.calls import USUAL_STEPS, Beginning, NewProcesses


def ticking(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    times = iter(seconds)
    monkeypatch.setattr("bench.calls.time.perf_counter", lambda: next(times))


def test_set_up_is_what_the_first_step_takes_longer_than_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticking(monkeypatch, 10.0, 13.0, 14.0, 15.0, 18.0, 19.0)
    beginning = Beginning()
    for _ in range(5):
        beginning(None)  # type: ignore[arg-type]
    assert beginning.seconds == 2.0  # of 3 until the first step's end; a step takes 1


def test_one_step_tells_nothing_of_set_up() -> None:
    beginning = Beginning()
    beginning(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 were seen"):
        _ = beginning.seconds


def test_each_figure_of_each_process_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = 0

    def run(self: NewProcesses) -> dict[str, float]:
        nonlocal ran
        ran += 1
        return {"until the first step": 10.0 * ran, "set-up": 1.0 * ran}

    monkeypatch.setattr(NewProcesses, "_run", run)
    processes = NewProcesses("resnet")
    assert processes.warmed is processes.warmed is None
    assert ran == 1
    found = [processes.next(figure) for figure in ("set-up", "until the first step")]
    assert found == [2, 20]
    assert [processes.next("until the first step") for _ in range(2)] == [30, 40]
    assert [processes.next("set-up") for _ in range(2)] == [3, 4]
    assert ran == 4


def test_a_process_is_counted_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> Any:
        assert command[1:] == ["-m", "bench.calls", "vit", "--threads", str(threads)]
        printed = json.dumps({"at": 105.0, "set_up": 2.0})
        return subprocess.CompletedProcess(command, 0, stdout=printed)

    threads = torch.get_num_threads()
    monkeypatch.setattr("bench.calls.time.time", lambda: 101.0)
    monkeypatch.setattr(subprocess, "run", run)
    processes = NewProcesses("vit")
    assert processes.next("until the first step") == 4.0
    assert processes.next("set-up") == 2.0


def test_a_new_process_stops_once_it_has_seen_usual_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = 0

    def drawn(way: str, guide: object, on_step: Any) -> None:
        nonlocal steps
        while True:
            steps += 1
            on_step(None)

    ticking(monkeypatch, 50.0, *(53.0 + step for step in range(USUAL_STEPS + 1)), 61.5)
    monkeypatch.setattr("bench.calls.time.time", lambda: 1000.0)
    monkeypatch.setattr(calls, "drawn", drawn)
    monkeypatch.setattr(calls, "bank_of", lambda predictor: predictor)
    monkeypatch.setattr(calls, "guide_of", lambda *arguments: None)
    monkeypatch.setattr(calls, "denoiser", lambda: None)
    with pytest.raises(SystemExit):
        calls.main(["resnet", "--threads", str(torch.get_num_threads())])
    assert steps == USUAL_STEPS + 1
    assert json.loads(capsys.readouterr().out) == {"at": 1000.0 - (61.5 - 52.0), "set_up": 2.0}
