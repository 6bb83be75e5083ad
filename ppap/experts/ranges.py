"""The former place of :mod:`ppap.experts.routing`."""

from ppap.experts.routing import NoiseRanges

__all__ = ["NoiseRanges"]
