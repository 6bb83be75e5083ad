"""What is counted as a move, what each condition changes, and how the record reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.rounding.__main__ import chain, write
from bench.rounding.conditions import CONDITIONS, GUIDANCE, INSTRUCTIONS, Condition, by_name
from bench.rounding.draw import draws_file
from bench.rounding.moves import LEVEL, Moves, moves
from bench.rounding.table import markdown, rows

SHAPE = (4, 1, 8, 8)


def grey() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.zeros(SHAPE, np.float32)


def test_the_same_images_do_not_move() -> None:
    assert moves(grey(), grey()) == Moves(samples=4, identical=4, over=0, median=0, largest=0)


def test_a_move_is_that_of_the_pixel_that_moves_most() -> None:
    images = grey()
    images[1, 0, 3, 3] = 0.5 * LEVEL  # invisible
    images[2, 0, 0, 0], images[2, 0, 7, 7] = 0.25 * LEVEL, -3 * LEVEL
    images[3] = 1.5 * LEVEL
    found = moves(images, grey())
    assert (found.samples, found.identical, found.over) == (4, 1, 2)
    assert found.share_over == 0.5
    assert found.median == pytest.approx(1.0)
    assert found.largest == pytest.approx(3.0)
    assert moves(grey(), images) == found


def test_one_bit_is_a_move_and_black_to_white_is_255_levels() -> None:
    images = grey() - 1
    images[0, 0, 0, 0] = np.nextafter(np.float32(-1), np.float32(0))
    images[1, 0, 0, 0] = 1
    found = moves(images, grey() - 1)
    assert (found.identical, found.over) == (2, 1)
    assert found.largest == pytest.approx(255)


def test_images_of_other_seeds_or_none_are_refused() -> None:
    for pair in ((grey(), grey()[:3]), (grey()[:0], grey()[:0])):
        with pytest.raises(ValueError, match="cannot compare"):
            moves(*pair)


def test_each_condition_differs_in_one_thing_from_what_it_is_compared_with() -> None:
    for condition in CONDITIONS:
        other = by_name(condition.against)
        named = {"name", "against"}
        changed = {key for key in vars(condition) if vars(condition)[key] != vars(other)[key]}
        assert len(changed - named) == (0 if condition.name in again else 1), condition.name


again = {"reference", "run again", "fast path, run again"}


def test_a_condition_sets_its_own_limits_and_no_others() -> None:
    inherited = {"PATH": "/bin", "ONEDNN_MAX_CPU_ISA": "AVX", "OMP_NUM_THREADS": "7"}
    native = Condition("native", threads=2).environment(inherited)
    assert native == {"PATH": "/bin", "OMP_NUM_THREADS": "2"}
    older = Condition("older", instructions="AVX2").environment(inherited)
    assert older == {"PATH": "/bin", "OMP_NUM_THREADS": "1", **INSTRUCTIONS["AVX2"]}


def test_no_two_conditions_share_a_file() -> None:
    files = {draws_file(Path("work"), condition, 8, 2) for condition in CONDITIONS}
    assert len(files) == len(CONDITIONS)


def drawn_with(**shifts: float) -> list[Any]:
    """Rows of grey images, those of some conditions shifted by so many grey levels."""
    drawn = {
        condition.name: {
            str(guidance): grey() + np.float32(shifts.get(condition.name, 0) * LEVEL)
            for guidance in GUIDANCE
        }
        for condition in CONDITIONS
    }
    about = {condition.name: {"instruction_set": "AVX9", "threads": 1} for condition in CONDITIONS}
    return list(rows(drawn, about))


def test_rows_are_compared_with_what_their_condition_says() -> None:
    found = drawn_with(**{"fast path": 2.0, "fast path, run again": 2.0})
    assert len(found) == (len(CONDITIONS) - 1) * len(GUIDANCE)
    over = {row["condition"] for row in found if row["over"]}
    assert over == {"fast path", "fast path, batch 16"}  # the former against the plain path


def test_the_tables_say_what_moved() -> None:
    machine = {
        "cpu": "Some CPU", "cores": 2, "instruction_set": "AVX9", "torch": "2.99",
        "commit": "abc", "date": "2030-01-01",
    }  # fmt: skip
    record = {"machine": machine, "steps": 5, "rows": drawn_with(AVX2=1.5)}
    visible, largest, median = markdown(record).split("\n## ")[1:]
    columns = len(GUIDANCE)
    assert "| reference | AVX2 |" + " 100.0% |" * columns in visible
    assert "| reference | SSE4.1 |" + " bit-identical |" * columns in visible
    assert "| reference | AVX2 |" + " 1.5 |" * columns in largest
    assert "| fast path | fast path, run again |" + " 0 |" * columns in median
    assert "Some CPU (AVX9), 2 cores" in markdown(record)


def test_what_a_condition_is_compared_with_is_drawn_too() -> None:
    assert [c.name for c in chain(["AVX2"])] == ["reference", "AVX2"]
    names = [c.name for c in chain(["fast path, batch 16"])]
    assert names == ["reference", "fast path", "fast path, batch 16"]
    assert tuple(chain([c.name for c in CONDITIONS])) == CONDITIONS


def test_the_record_holds_what_was_drawn(tmp_path: Path) -> None:
    files = {}
    for condition in chain(["batch 1"]):
        path = files[condition.name] = tmp_path / f"{condition.name}.npz"
        about = json.dumps({"instruction_set": "AVX9", "threads": condition.threads})
        np.savez(path, about=np.array(about), **{str(guidance): grey() for guidance in GUIDANCE})
    page = write(tmp_path / "results", files, 5).read_text()
    record = json.loads((tmp_path / "results" / "rounding.json").read_text())
    assert [row["condition"] for row in record["rows"]] == ["batch 1"] * len(GUIDANCE)
    assert {row["identical"] for row in record["rows"]} == {len(grey())}
    assert {"cpu", "instruction_set", "torch", "python", "commit"} <= set(record["machine"])
    assert record["rows"][0]["threads"] == 1
    assert "bit-identical" in page
