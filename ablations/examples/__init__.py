"""Plugins to copy from: a sweep, a predictor, a denoiser, a setting and a guide; see README.md."""
