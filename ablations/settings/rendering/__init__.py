"""Rendered scenes: solids, how they are placed, and what a camera sees of them."""
