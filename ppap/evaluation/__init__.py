"""Features, reference statistics, metrics and their intervals."""
