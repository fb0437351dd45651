"""The worst start within a ball: `attack`."""
