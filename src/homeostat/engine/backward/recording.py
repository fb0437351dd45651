"""A recorded evaluation together with what it was recorded with: where its gradients go, and whether it still holds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine.backward.graph import Graph, Seal
from homeostat.engine.problem import Problem
from homeostat.engine.surroundings import Surroundings
from homeostat.errors import ContractError


def twice_refused() -> RuntimeError:
    """What to raise where a derivative of a derivative is needed and an operation of the step has none.

    PyTorch says nothing there: the path is missing, and what is missing counts as 0.
    """
    return RuntimeError(
        "step uses an operation that cannot be differentiated twice (once_differentiable, or a custom backward): "
        "NormalCG, forward mode and second derivatives need that"
    )


class Recording:
    """One or more recorded evaluations of a step.

    Args:
        problem: what was evaluated.
        outputs: recorded tensors.
        inputs: leaves that the recording starts from.
        first: what `mark` gave before it.
    """

    def __init__(self, problem: Problem, outputs: Sequence[Tensor], inputs: Sequence[Tensor], first: int) -> None:
        self.outputs, self.inputs = list(outputs), list(inputs)
        self._step = problem.step
        self._surroundings = Surroundings(problem.step)
        known = [x for x in pytree.tree_leaves(problem.context) if isinstance(x, Tensor) and x.grad_fn is not None]
        graph = Graph.of(outputs, inputs, known, first)
        if graph.foreign:  # fast weights in a module, an encoder's answer in a closure
            known += self._surroundings.tensors().values()
            graph = Graph.of(outputs, inputs, known, first)
        self.sources = graph.sources
        """Tensors that gradients flow to, beside the inputs."""
        self.unknown = len(graph.foreign)
        """Number of tensors with a graph of their own that the step uses, and that were not found."""
        self._seal = Seal(graph.nodes)

    @property
    def reaches_others(self) -> bool:
        """Whether gradients flow to parameters, or to what the context was made from."""
        return bool(self.sources or self.unknown)

    def check(self) -> None:
        """Make sure that what was kept for the backward pass is what it was.

        Raises:
            ContractError: it is not; it names what changed.
        """
        try:
            self._seal.check()
        except ContractError as error:
            for line in self._surroundings.changes(self._step):
                error.add_note(line)
            raise

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """While this lasts, gradients end at the sources, also where one source was made from another.

        What was hooked to the sources waits: it is called when the gradient arrives there in earnest.
        """
        hooks = [(x._backward_hooks, dict(x._backward_hooks)) for x in self.sources if x._backward_hooks]
        kept = [(x, x.grad) for x in self.sources if x.retains_grad]
        for own, _ in hooks:
            own.clear()
        handles = [
            x.grad_fn.register_prehook(lambda grads: tuple(None if g is None else torch.zeros_like(g) for g in grads))
            for x in self.sources
            if x.grad_fn is not None
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for own, former in hooks:
                own.update(former)
            for x, grad in kept:
                x.grad = grad
