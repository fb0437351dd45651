"""Courses: examples followed step by step with what can be known of their answers without labels."""
