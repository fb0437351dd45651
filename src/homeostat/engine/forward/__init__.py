"""Solving `z = f(z)`: the methods, the stopping test and the loop around them."""
