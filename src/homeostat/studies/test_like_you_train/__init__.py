"""The study of "Test like you train in implicit deep learning" (Ramzi et al., arXiv 2305.15042), claim by claim."""
