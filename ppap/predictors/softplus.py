"""Smooth activations for a predictor that guides: EluCD (Ma et al., arXiv 2310.11311), section 3.3.

A ReLU network's gradient jumps from one linear piece to the next; with softplus in place of each
ReLU it changes smoothly, and the weights stay as they are.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ppap.compute.copies import own_copy

__all__ = ["with_softplus"]

M = TypeVar("M", bound=nn.Module)


def with_softplus(module: M, beta: float = 3.0) -> M:
    """A copy in which every ``nn.ReLU`` is ``nn.Softplus(beta)``.

    Args:
        module: a predictor, or a whole bank of experts.
        beta: the larger, the closer to a ReLU; EluCD takes 3 to 5.

    Raises:
        ValueError: for a beta that is not positive, or a module without an ``nn.ReLU``.
    """
    if not beta > 0:
        raise ValueError(f"softplus needs a positive beta, got {beta}")
    smooth = own_copy(module)
    found = 0
    for parent in list(smooth.modules()):
        for name, child in parent._modules.items():  # named_children gives a shared layer once
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus(beta))
                found += 1
    if not found:
        raise ValueError(
            f"{type(module).__name__} has no nn.ReLU that could become smooth; "
            "ReLUs called as functions cannot be replaced"
        )
    return smooth
