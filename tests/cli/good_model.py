"""The source of a model in which nothing is wrong, for tests that hand in files."""

GOOD = """
import torch

class Heron:
    name = "heron"
    trained_steps = 2
    examples = [(torch.linspace(1, 9, 16)[:, None], torch.linspace(1, 9, 16)[:, None].sqrt())]

    def encode(self, x):
        return x

    def initial_state(self, x):
        return torch.ones_like(x)

    def step(self, z, x):
        return 0.5 * (z + x / z)

    def decode(self, z, x):
        return z

    def correct(self, outputs, targets):
        return ((outputs - targets).abs() < 1e-3).all(1)

def build():
    return Heron()
"""
