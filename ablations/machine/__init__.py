"""The machine room: cells, engine, workers, store, leases, records; knows nothing of diffusion."""
