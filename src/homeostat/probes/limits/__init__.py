"""What an example ends in, and how sure that is: `classify_limits`."""
