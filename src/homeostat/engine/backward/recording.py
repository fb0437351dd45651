"""A recorded evaluation together with what it was recorded with: where its gradients go, and whether it still holds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.engine.backward.graph import Graph, Seal, is_opaque
from homeostat.engine.norms import noise_floor, norm_dtype
from homeostat.engine.problem import Problem
from homeostat.engine.surroundings import Surroundings
from homeostat.errors import ContractError

# Two products by one graph differ by so many units in the last place at most, in the root mean square of each tensor.
_SAME_UNITS = 256


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
        self._product: list[Tensor | None] | None = None
        if is_opaque(graph.nodes):
            # A reentrant checkpoint has no products; without inputs nobody else is going to take any.
            with nullcontext() if inputs else suppress(RuntimeError):
                self._product = self._summaries()

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
            self._compare_products()
        except ContractError as error:
            for line in self._surroundings.changes(self._step):
                error.add_note(line)
            raise

    def _compare_products(self) -> None:
        """Take the product again that was taken when the step was recorded, where a seal does not see everything."""
        if self._product is None:
            return
        try:
            found = self._summaries()
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError) or "second time" in str(error):  # freed
                raise
            raise _recomputed((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
        if not all(_are_alike(new, old) for new, old in zip(found, self._product, strict=True)):
            raise _recomputed("its derivative is another one")

    def _summaries(self) -> list[Tensor | None]:
        """Of the derivatives of one sum of the outputs, in which all weights are different: a sum, a norm, and how far
        rounding may move them.
        """
        ends, used = [*self.inputs, *self.sources], [x for x in self.outputs if x.requires_grad]
        if not used or not ends:
            return []
        with self.bounded():
            found = torch.autograd.grad(used, ends, [_weights(x) for x in used], retain_graph=True, allow_unused=True)
        return [None if x is None else _summary(x.detach()) for x in found]

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


def _weights(like: Tensor) -> Tensor:
    """Numbers from -1 to 1, no two of them alike."""
    return torch.arange(like.numel(), dtype=torch.float32, device=like.device).cos().to(like.dtype).view(like.shape)


def _summary(x: Tensor) -> Tensor:
    wide = x.to(norm_dtype(x.dtype))
    size = wide.norm()
    return torch.stack([(wide * _weights(wide)).sum(), size, noise_floor([x], _SAME_UNITS) * size])


def _are_alike(new: Tensor | None, old: Tensor | None) -> bool:
    if new is None or old is None:
        return new is old
    return bool(((new - old)[:2].abs() <= old[2]).all() | ~torch.isfinite(old[1]))


def _recomputed(what: str) -> ContractError:
    return ContractError(
        f"backward() computes a part of step again (a checkpoint in step, hooks of saved tensors, a custom backward) "
        f"and {what}: a weight, a mode, a buffer or a variable that it uses has changed since the solve. Call "
        "backward() before that, or keep a copy"
    )
