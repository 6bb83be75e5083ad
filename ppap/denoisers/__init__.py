"""Published denoising networks and their loaders."""
