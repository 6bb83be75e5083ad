"""Practical plug-and-play diffusion guidance."""
