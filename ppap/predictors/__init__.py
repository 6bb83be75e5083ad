"""Off-the-shelf predictors and their loaders."""
