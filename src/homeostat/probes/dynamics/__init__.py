"""Dynamics: whether small differences die out, at the limit and on the way there."""
