"""The prepared guided step: merged, folded, compiled."""
