"""Kernels are compiled in several processes, once each, and a change to anything shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from ppap_kernels import audit, compilation
from ppap_kernels.compilation import compile_all, key
from ppap_kernels.cubin import Resources, Source, compile_for
from ppap_kernels.operations import cases

STEP, PRODUCT = (
    next(case.source for case in cases(("fp16",), (16,)) if case.name == name)
    for name in ("guided_ddim_step", "lora_linear forward")
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is compiled, in place of a compiler."""
    seen: list[tuple[str, int]] = []

    def fake(sources: list[Source], arch: int) -> list[Resources]:
        seen.extend((source.kernel.__name__, arch) for source in sources)
        return [Resources(arch, 0, len(source.pointers), 4, "HMMA") for source in sources]

    monkeypatch.setattr(compilation, "compile_for", fake)
    return seen


def test_worker_processes_find_what_one_process_finds() -> None:
    jobs = [(source, arch) for source in (STEP, PRODUCT) for arch in (80, 90)]
    found = compile_all(jobs, workers=2)
    alone = {arch: compile_for([STEP, PRODUCT], arch) for arch in (80, 90)}
    assert found == [alone[80][0], alone[90][0], alone[80][1], alone[90][1]]
    assert [bool(one.tensor_core) for one in found] == [False, False, True, True]
    assert found[2].tensor_core == "HMMA"


def test_equal_jobs_are_compiled_once_and_results_keep_their_places(
    compiled: list[tuple[str, int]],
) -> None:
    found = compile_all([(STEP, 90), (PRODUCT, 80), (STEP, 90), (STEP, 80)], workers=1)
    assert [one.registers for one in found] == [90, 80, 90, 80]
    assert found[0] == found[2]
    assert len(compiled) == 3


def test_what_was_compiled_is_read_from_the_cache(
    compiled: list[tuple[str, int]], tmp_path: Path
) -> None:
    cache = tmp_path / "made" / "kernels.json"
    first = compile_all([(STEP, 80)], 1, cache)
    assert compile_all([(STEP, 80), (STEP, 90)], 1, cache)[:1] == first
    assert [arch for _, arch in compiled] == [80, 90]
    assert len(json.loads(cache.read_text())) == 2
    cache.write_text(cache.read_text()[:-9])  # cut off
    assert compile_all([(STEP, 80)], 1, cache) == first
    assert [arch for _, arch in compiled] == [80, 90, 80]


def test_a_key_changes_with_all_that_a_result_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(STEP, 80)
    assert key(replace(STEP), 80) == before
    others = {
        key(STEP, 90),
        key(PRODUCT, 80),
        key(replace(STEP, options={"num_warps": 8, "num_stages": 1}), 80),
        key(replace(STEP, constants={**STEP.constants, "CLIP": False}), 80),
        key(replace(STEP, unaligned=frozenset({"pixels"})), 80),
    }
    monkeypatch.setattr(compilation.triton, "__version__", "0")
    others.add(key(STEP, 80))
    assert len(others - {before}) == 6


def test_an_audit_prints_the_same_from_its_cache(
    compiled: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--dtypes", "fp16", "--ranks", "16", "--workers", "1"]
    options += ["--cache", str(tmp_path / "kernels.json")]
    assert audit.main(options) == 0
    cold, count = capsys.readouterr().out, len(compiled)
    assert audit.main(options) == 0
    assert capsys.readouterr().out == cold
    assert len(compiled) == count > 0
    assert cold.count("| sm_90 |") == len(list(cases(("fp16",), (16,))))
