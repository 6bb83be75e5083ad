"""Other CPUs, played by this one: ``pytest --cpu avx2``, ``pytest --cpu sse4.1``.

The libraries that compute (ATen, oneDNN, MKL) choose their code by the instruction set they find
and can be told to find less. So a test can be seen to fail on an older CPU without having one.
The variables count when torch is imported, and not later.
"""

from __future__ import annotations

__all__ = ["CPUS"]

CPUS: dict[str, dict[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "sse4.1": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    },
}
