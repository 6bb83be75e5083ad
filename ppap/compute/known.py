"""Whether a tensor's values can be looked at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["values_known"]


def values_known(tensor: Tensor) -> bool:
    """False in a traced graph, under the compiler and in a transform of functions."""
    traced = get_proxy_mode() is not None or torch.compiler.is_compiling()
    return not traced and not tensor.is_meta and not is_functorch_wrapped_tensor(tensor)
