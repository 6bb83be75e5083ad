"""Expert banks: noise ranges, adapters, routing, training, exchange with other formats."""
