"""Options of a library's models, which each network's own constructor takes or refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ppap.files.checkpoints import one_line

__all__ = ["made_for", "options_named"]


@contextmanager
def options_named(library: str, architecture: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Within it a model is made; options that its network does not take are named.

    Args:
        library: whose model it is, for the message, like the next.
        architecture: of the model.
        options: that were given.

    Raises:
        ValueError: for a TypeError of the network's own constructor.
    """
    try:
        yield
    except TypeError as error:
        raise ValueError(
            f"{library}'s {architecture} does not take these options ({one_line(error)}); it was "
            f"given {', '.join(options)}"
        ) from error


def made_for(options: Mapping[str, Any], *names: str) -> tuple[int, int] | None:
    """(H, W) of the images that options make a network for; None if none of them is given.

    Args:
        options: that were given.
        names: of those that say it, as a number or as two.
    """
    side = next((options[name] for name in names if options.get(name)), None)
    if side is None:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    return height, width
