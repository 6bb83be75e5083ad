"""How long work tells how far it is: one convention for sampling, synthesis and training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm

__all__ = ["Progress", "reporting"]


class Progress(Protocol):
    """Hears how far some work is."""

    def __call__(self, done: int, total: int, /, **facts: float) -> None:
        """Called after each part of the work.

        Args:
            done: units finished so far: images, or training steps.
            total: units in all.
            facts: what else there is to say of the part, such as ``loss``.
        """
        ...


@contextmanager
def reporting(
    progress: bool | Progress, total: int, what: str, unit: str, done: int = 0
) -> Iterator[Callable[..., None]]:
    """A function of (units finished since its last call, **facts) that tells ``progress``.

    Args:
        progress: True shows a bar on standard error, False nothing; a function is called.
        total: units in all.
        what: names the work, before the bar.
        unit: of what is counted, as it stands after a number.
        done: units that were finished before.

    Yields:
        The function to call after each part.
    """
    if callable(progress):
        finished = done

        def tell(units: int, **facts: float) -> None:
            nonlocal finished
            finished += units
            progress(finished, total, **facts)

        yield tell
        return
    with tqdm(desc=what, total=total, initial=done, unit=f" {unit}", disable=not progress) as bar:

        def advance(units: int, **facts: float) -> None:
            if facts:
                bar.set_postfix(
                    {name: f"{value:.4g}" for name, value in facts.items()}, refresh=False
                )
            bar.update(units)

        yield advance
