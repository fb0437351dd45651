"""Compatibility: the interfaces of other libraries on our engine."""
