"""Settings: denoiser, predictors, data and budgets of one scale of the experiment."""
