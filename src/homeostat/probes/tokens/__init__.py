"""Language models: a judge of next tokens, and what becomes of answers token by token."""
