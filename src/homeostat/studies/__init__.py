"""Studies: what is run with the parts: the demonstration, audits of checkpoints and of models from files."""
