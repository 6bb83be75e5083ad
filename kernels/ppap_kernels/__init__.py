"""Triton kernels for LoRA experts and guided sampling, each with a plain-torch reference.

Every operation takes `backend="auto" | "torch" | "triton"`; see `ppap_kernels.dispatch`. What
the kernels compile to is shown by `python -m ppap_kernels.audit`.
"""

from ppap_kernels.dispatch import Backend
from ppap_kernels.grouped_lora_linear import grouped_lora_linear
from ppap_kernels.guided_step import guided_ddim_step, guided_ddpm_step
from ppap_kernels.lora_conv import grouped_lora_conv, lora_conv
from ppap_kernels.lora_linear import lora_linear
from ppap_kernels.merge_lora import merge_lora
from ppap_kernels.transfer_loss import transfer_loss

__all__ = [
    "Backend",
    "grouped_lora_conv",
    "grouped_lora_linear",
    "guided_ddim_step",
    "guided_ddpm_step",
    "lora_conv",
    "lora_linear",
    "merge_lora",
    "transfer_loss",
]
