"""What a prediction means: class, depth, segmentation, similarity; and targets from files."""
