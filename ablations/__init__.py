"""The ablation harness: settings, sweeps, cells, the store and the engine that runs them."""
