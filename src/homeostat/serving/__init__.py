"""Serving: answers over HTTP, examples joining and leaving a running batch."""
