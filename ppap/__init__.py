"""Practical plug-and-play diffusion guidance.

Steer any unconditional diffusion model with any off-the-shelf predictor, by small PEFT
experts, one per noise range, trained without data (Go et al., CVPR 2023, arXiv 2212.05973).
Everything is imported from its module, e.g. ``from ppap.experts.bank import ExpertBank``.
"""
