"""`extra_steps`: what more or fewer steps than the trained ones do to the loss."""
