"""A process prepares a denoiser once, and holds what it has prepared as long as it may be asked."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ppap.compute.tracing import Traced
from ppap.diffusion.ddim import DDIM
from ppap.fast import gradients, kept, prediction
from ppap.fast.kept import MOST, batch_for, forget_paths, kept_path
from ppap.fast.path import FastPath
from ppap.fast.sampling import fast_path, sample, synthesize
from tests.ppap.fast.test_path import COUNT, TARGETS, learned_denoiser, smooth_bank
from tests.ppap.networks import tiny_denoiser


@pytest.fixture(autouse=True)
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are not compiled here: what is kept is the same."""
    monkeypatch.setattr(
        kept, "FastPath", lambda d, batch, **options: FastPath(d, batch, compile=False, **options)
    )
    forget_paths()
    yield
    forget_paths()


def test_a_second_call_traces_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[int] = []
    denoiser, bank = learned_denoiser(), smooth_bank()

    def call(scale: float, targets: torch.Tensor) -> torch.Tensor:
        guide = bank.guide(targets, scale)
        return sample(denoiser, COUNT, guide, DDIM(4), batch=4, fast=True)

    class Counted(Traced):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            traced.append(1)
            super().__init__(*arguments, **options)

    for module in (gradients, prediction):
        monkeypatch.setattr(module, "Traced", Counted)
    first = call(3.0, TARGETS)
    assert len(traced) == 2  # the denoiser and one gradient for five experts
    again = call(3.0, TARGETS)
    other = call(1.0, TARGETS.flip(0))
    assert len(traced) == 2
    assert torch.equal(first, again)
    expected = sample(denoiser, COUNT, bank.guide(TARGETS.flip(0), 1.0), DDIM(4), fast=False)
    torch.testing.assert_close(other, expected, atol=1e-4, rtol=0)
    synthesize(denoiser, 4, DDIM(2), batch=4, fast=True)
    assert len(traced) == 2  # the same denoiser at the same batch


def test_weights_that_changed_between_two_calls_count() -> None:
    denoiser, bank = learned_denoiser(), smooth_bank()

    def call(fast: bool) -> torch.Tensor:
        return sample(denoiser, COUNT, bank.guide(TARGETS, 3.0), DDIM(4), fast=fast)

    before = call(fast=True)
    with torch.no_grad():
        for parameter in (*denoiser.network.parameters(), *bank.experts.parameters()):
            parameter.mul_(1.1)
    after = call(fast=True)
    torch.testing.assert_close(after, call(fast=False), atol=1e-4, rtol=0)
    assert (after - before).abs().max() > 1e-3


def test_each_denoiser_batch_and_number_of_threads_has_a_path_of_its_own() -> None:
    one, other = tiny_denoiser(), tiny_denoiser()
    assert kept_path(one, 4) is kept_path(one, 4)
    assert kept_path(one, 4) is not kept_path(other, 4)
    assert kept_path(one, 4) is not kept_path(one, 8)
    path, threads = kept_path(one, 4), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert kept_path(one, 4) is not path
    finally:
        torch.set_num_threads(threads)
    assert kept_path(one, 4) is path


def deterministic() -> None:
    torch.use_deterministic_algorithms(True)


def in_tensor_cores() -> None:
    torch.set_float32_matmul_precision("high")


def without_tensor_cores() -> None:
    torch.backends.cudnn.allow_tf32 = not torch.backends.cudnn.allow_tf32


def by_a_newer_switch() -> None:
    """After which PyTorch's older getters raise."""
    switches: Any = torch.backends
    switches.cudnn.conv.fp32_precision = "ieee"
    switches.mkldnn.matmul.fp32_precision = "bf16"


def elsewhere() -> None:
    os.environ["XDG_CACHE_HOME"] = "/elsewhere"


@pytest.mark.parametrize(
    "change",
    [deterministic, in_tensor_cores, without_tensor_cores, by_a_newer_switch, elsewhere],
)
def test_what_graphs_are_made_for_has_a_path_of_its_own(
    change: Callable[[], None], monkeypatch: pytest.MonkeyPatch, float32_switches: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/here")
    denoiser = tiny_denoiser()
    path = kept_path(denoiser, 4)
    assert kept_path(denoiser, 4) is path
    try:
        change()
        assert kept_path(denoiser, 4) is not path
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("fast", ["yes", 1, FastPath])
def test_a_path_is_a_path_or_a_yes_or_no(fast: Any) -> None:
    with pytest.raises(TypeError, match=r"fast is True, False, None or a ppap\.FastPath"):
        sample(tiny_denoiser(), 1, fast=fast)
    with pytest.raises(TypeError, match=r"fast is True, False, None or a ppap\.FastPath"):
        synthesize(tiny_denoiser(), 1, fast=fast)


def test_the_number_of_paths_is_bounded_and_what_goes_is_freed() -> None:
    denoiser = tiny_denoiser()
    first = weakref.ref(denoiser)
    kept_path(denoiser, 2)
    del denoiser
    gc.collect()
    assert first() is not None  # held: nothing else can have its identity
    others = [tiny_denoiser() for _ in range(MOST)]
    for other in others:
        kept_path(other, 2)
    gc.collect()
    assert first() is None
    last = weakref.ref(others.pop())
    forget_paths()
    del other
    gc.collect()
    assert last() is None


def test_a_path_of_the_callers_is_used_as_it_is() -> None:
    denoiser = tiny_denoiser()
    own = FastPath(denoiser, 4, compile=False)
    assert fast_path(denoiser, 4, own) is own
    assert fast_path(denoiser, 4, False) is None
    assert fast_path(denoiser, 4, True) is kept_path(denoiser, 4)


def test_few_images_share_the_graphs_of_the_next_larger_batch() -> None:
    sizes = {count: batch_for(count, 128) for count in range(1, 300)}
    assert all(size >= min(count, 128) for count, size in sizes.items())
    assert all(size <= 1.5 * count for count, size in sizes.items() if count > 2)
    assert len(set(sizes.values())) <= 14
    assert batch_for(20, 16) == 16
    assert batch_for(100, 100) == 100
    denoiser = tiny_denoiser()
    plain = sample(denoiser, 5, None, DDIM(3), fast=False)
    torch.testing.assert_close(sample(denoiser, 5, None, DDIM(3), fast=True), plain)
    assert len(sample(denoiser, 0, None, DDIM(3), fast=True)) == 0


def test_no_batch_is_refused() -> None:
    for fast in (True, False):
        with pytest.raises(ValueError, match="batch"):
            sample(tiny_denoiser(), 3, batch=0, fast=fast)
