"""Adapters: other people's models, as models of five functions. Each says what a step is and what it costs."""
