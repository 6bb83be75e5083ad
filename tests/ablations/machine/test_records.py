"""Records are append-only, and know what they know."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np

from ablations.machine import records


def test_records_are_appended_once_and_the_last_of_a_key_counts(tmp_path: Path) -> None:
    one, two = {"key": "a", "value": 1}, {"key": "b", "value": 2}
    assert records.append(tmp_path, [one, two]) == 2
    assert records.append(tmp_path, [one, two]) == 0
    assert records.append(tmp_path, [{"key": "a", "value": 3}]) == 1
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 3
    assert records.read(tmp_path)["a"]["value"] == 3


def test_a_line_that_was_cut_short_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"key": "a", "value": 1}\n{"key": "b", "va')
    assert set(records.read(tmp_path)) == {"a"}
    assert records.append(tmp_path, [{"key": "b", "value": 2}]) == 1
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_two_writers_append_and_nothing_is_lost(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        for place in range(20):
            records.append(tmp_path, [{"key": f"{writer}-{place}"}])

    writers = [threading.Thread(target=write, args=(n,)) for n in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(records.read(tmp_path)) == 40


def test_grids_are_kept_by_name(tmp_path: Path) -> None:
    first, second = np.zeros((2, 3, 4, 4), np.uint8), np.ones((2, 3, 4, 4), np.uint8)
    records.write_grids(tmp_path, {"a/x": first})
    records.write_grids(tmp_path, {"b/x": second})
    with np.load(tmp_path / "grids.npz") as found:
        assert np.array_equal(found["a/x"], first)
        assert np.array_equal(found["b/x"], second)
