"""Whether a tensor's values can be looked at, and a look at whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["outlier", "values_known"]


def values_known(tensor: Tensor) -> bool:
    """False in a traced graph, under the compiler, in a transform of functions, and of no values.

    The compiler is asked first, for what comes after would break its graph.
    """
    if torch.compiler.is_compiling() or get_proxy_mode() is not None:
        return False
    absent = tensor.is_meta or isinstance(tensor, FakeTensor)
    return not absent and not is_functorch_wrapped_tensor(tensor)


def outlier(numbers: Tensor, lowest: int, highest: int) -> int | None:
    """One of some whole numbers that lies beyond two ends; None also where no values are known."""
    if not values_known(numbers) or not numbers.numel():
        return None
    low, high = map(int, numbers.aminmax())
    if low < lowest:
        return low
    return high if high > highest else None
