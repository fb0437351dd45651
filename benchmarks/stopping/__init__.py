"""What stopping policies save, and whether they keep their promise: `python -m benchmarks.stopping`."""
