"""What is read and written: checkpoints, images as bytes, files from hubs."""
