"""Gaussian noise on the way: added to the state after every step of the model, in training only.

Noise asks of a model that it comes back from small errors wherever they happen, and so that the answer attracts
(Equilibrium Reasoners, arXiv 2605.21488, train with such noise beside random starts).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from homeostat.engine.batch_statistics import refuse_batch_statistics
from homeostat.engine.problem import Problem
from homeostat.models.starts import stream_seed


class PathNoise:
    """Noise of standard deviation `scale`, in units of the state, on every measured leaf.

    Each example has a stream of its own on the device of its state, found from the seed and its index: its noise does
    not depend on who shares its batch, nor on the number of processes (but on the kind of device).

    Example:
        >>> problem = Problem.of(lambda z, _: 0 * z, torch.zeros(2, 5000), None)
        >>> leaves = PathNoise(0.1, 3, (7, 8)).walk(problem, free=2, graphed=1)
        >>> leaves[0].std(1).round(decimals=2)
        tensor([0.1000, 0.1000])
    """

    def __init__(self, scale: float, seed: int, indices: Sequence[int]) -> None:
        self._scale, self._seed, self._indices = scale, seed, indices

    def walk(self, problem: Problem, *, free: int, graphed: int) -> list[Tensor]:
        """Leaves of the state after `free` noisy steps without a graph and `graphed` with one."""
        step, leaves, measured = problem.bind(problem.context), problem.state, problem.layout.measured()
        streams = {i: self._generators(leaves[i], i) for i in measured}
        with refuse_batch_statistics():
            for count in range(free + graphed):
                with torch.set_grad_enabled(torch.is_grad_enabled() and count >= free):
                    leaves = step(leaves)
                    for i in measured:
                        leaves[i] = leaves[i] + self._noise(leaves[i], streams[i])
        return leaves

    def _generators(self, leaf: Tensor, position: int) -> list[torch.Generator]:
        generators = [torch.Generator(leaf.device) for _ in self._indices]
        for generator, index in zip(generators, self._indices, strict=True):
            generator.manual_seed(stream_seed(self._seed, index, position))
        return generators

    def _noise(self, leaf: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        noise = torch.empty(leaf.shape, device=leaf.device)
        for row, generator in enumerate(generators):
            noise[row].normal_(generator=generator)
        return (self._scale * noise).to(leaf.dtype)
