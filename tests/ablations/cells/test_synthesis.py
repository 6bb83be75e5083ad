"""Images to train on: from shards, and in a file where there are too many."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from ablations.cells import synthesis
from ablations.cells.synthesis import concatenated, in_batches_that_fit
from ppap.fast.kept import forget_paths, kept_path
from ppap.fast.path import FastPath
from tests.ppap.fast.test_path import learned_denoiser


def test_smaller_batches_are_tried_while_memory_does_not_suffice() -> None:
    tried = []

    def work(batch: int) -> torch.Tensor:
        tried.append(batch)
        if batch > 3:
            raise torch.OutOfMemoryError
        return torch.tensor(batch)

    assert in_batches_that_fit(work, 16) == 2
    assert tried == [16, 8, 4, 2]
    with pytest.raises(torch.OutOfMemoryError):
        in_batches_that_fit(lambda batch: work(9), 2)


def test_what_was_prepared_for_a_larger_batch_is_let_go_of_first() -> None:
    """Each fast path holds the denoiser's weights once more."""
    denoiser = learned_denoiser()
    prepared: list[weakref.ref[FastPath]] = []

    def work(batch: int) -> torch.Tensor:
        assert all(path() is None for path in prepared)
        prepared.append(weakref.ref(kept_path(denoiser, batch)))
        if batch > 3:
            raise torch.OutOfMemoryError
        return torch.tensor(batch)

    assert in_batches_that_fit(work, 8) == 2
    assert len(prepared) == 3
    forget_paths()


def test_images_beyond_memory_are_concatenated_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [np.full((n, 1, 2, 2), n, np.uint8) for n in (3, 1, 4)]
    expected = np.concatenate(parts)
    assert type(concatenated(iter(parts))) is np.ndarray
    monkeypatch.setattr(synthesis, "MOST_IN_MEMORY", 13)
    found = concatenated(iter(parts))
    assert type(found) is np.memmap
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(torch.from_numpy(found)[torch.tensor([7, 0])], expected[[7, 0]])
