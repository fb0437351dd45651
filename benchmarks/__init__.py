"""Speed, memory and acceleration, measured side by side with peers in one run: `python -m benchmarks`."""
