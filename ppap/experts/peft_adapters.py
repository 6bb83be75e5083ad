"""The former place of :mod:`ppap.experts.adapters.peft`."""

from ppap.experts.adapters.peft import Method, Peft

__all__ = ["Method", "Peft"]
