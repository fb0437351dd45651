"""Several models on the same inputs, at equal cost."""
