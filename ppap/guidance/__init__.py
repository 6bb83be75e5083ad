"""Guides: from a noisy image and a target to a gradient."""
