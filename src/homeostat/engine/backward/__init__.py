"""Gradients of what was solved."""
