"""What tests of more than one room share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture
def float32_switches() -> Iterator[Any]:
    """PyTorch's backends, whose precisions of float32 may be set and are set back."""
    backends: Any = torch.backends
    products, convolutions = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    others = backends.mkldnn.conv.fp32_precision
    yield backends
    # These set the newer switches as well.
    torch.set_float32_matmul_precision(products)
    backends.cudnn.allow_tf32 = convolutions
    backends.mkldnn.conv.fp32_precision = others
