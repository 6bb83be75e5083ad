"""Diffusion itself: schedule, denoiser, samplers and the one loop; knows no predictor."""
