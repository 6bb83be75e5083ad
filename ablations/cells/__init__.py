"""The units of cached work: data, experts, samples, scores, measures, results."""
