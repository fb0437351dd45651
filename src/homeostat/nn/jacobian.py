"""How strongly a step pulls states together: a penalty on its Jacobian, and the Jacobian's spectral radius.

`J` is the Jacobian of one example's `f(z)` by its `z`, over all floating leaves that are not `Carry`; context, carried
and integer leaves are held fixed. Products come from one recorded evaluation, by reverse mode: `J^T u`, which works for
every step that can be trained (`J^T` has the Frobenius norm and the spectral radius of `J`), and, where it is needed,
`J v` as the derivative of `J^T u` by `u`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.problem import Problem
from homeostat.engine.step_function import StepFunction
from homeostat.engine.stop import check_count
from homeostat.errors import ContractError

Product = Callable[[list[Tensor]], list[Tensor]]


def jacobian_penalty(
    step: StepFunction,
    state: Any,
    context: Any = None,
    *,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate ||J||_F^2 / n for each example, n being the number of its floating entries: add it to a loss.

    The mean over samples of ||J^T e||^2 / n with random signs e (Hutchinson). Where J is c times the identity, it is
    c^2, for any n. The mean over a batch is what Bai et al. divide by batch and dimension together; they draw e from
    a normal distribution, which has the larger variance.

    Args:
        step: the map.
        state: where to take the Jacobian, usually a `solution.state`. If it has a graph, gradients flow into it too;
            the paper's form, which leaves that out, is `state.detach()`.
        context: what `step` needs beside the state.
        samples: number of random vectors; each costs one product.
        generator: where they are drawn from.

    Returns:
        `(batch,)`, float32 at least, differentiable by parameters, context and state where gradients are enabled.

    Raises:
        ContractError: what `solve` would raise, or a call under `inference_mode`.

    Source:
        Bai, Koltun, Kolter, "Stabilizing equilibrium models by Jacobian regularization", arXiv 2106.14342.

    Example:
        >>> gain = torch.tensor([[0.5], [0.9]])
        >>> jacobian_penalty(lambda z, c: c * z + 1, torch.zeros(2, 7), gain)
        tensor([0.2500, 0.8100])
    """
    check_count("samples", samples)
    differentiable = torch.is_grad_enabled()
    linear = Linearised(Problem.of(step, state, context))
    total = None
    for _ in range(samples):
        signs = [2 * x.bernoulli_(0.5, generator=generator) - 1 for x in linear.blank(generator)]
        rows = linear.pull(linear.fit(signs), differentiable)
        squared = row_dot(rows, rows)
        total = squared if total is None else total + squared
    assert total is not None
    result = total / (samples * max(1, linear.size))
    return result if differentiable else result.detach()


def spectral_radius(
    step: StepFunction,
    state: Any,
    context: Any = None,
    *,
    iterations: int = 64,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Estimate the spectral radius of J for each example: below 1, plain iteration settles near `state`.

    Power iteration, read off as the mean rate of growth over the last half of the iterations,
    (||J^m v|| / ||J^k v||)^(1 / (m - k)) with m = `iterations` and k = m // 2. A single Rayleigh quotient would go
    round in circles where the largest eigenvalues are a complex pair. The error shrinks geometrically where one
    eigenvalue is the largest, like 1 / m where it is a pair that turns on an ellipse or others are close in size.

    Args:
        step: the map.
        state: where to take the Jacobian.
        context: what `step` needs beside the state.
        iterations: products, one backward pass of one step each; 2 or more.
        generator: where the first direction is drawn from.
        differentiable: give the result a graph, where gradients are enabled: d|l| = Re(conj(l) / |l| u^T dJ v / u^T v)
            for the largest eigenvalue l, or one of the pair, with its left and right eigenvectors u and v, which are
            taken as constant. They come from two more products after the power iterations of J^T and J, so that the
            cost is twofold; the step must be twice differentiable. An example whose radius is 0 gets no gradient.
            Otherwise the result has no graph.

    Returns:
        `(batch,)`, float32 at least; not finite for an example whose Jacobian is not.

    Raises:
        ContractError: what `solve` would raise, or a call under `inference_mode`.

    Source:
        For the derivative: Magnus, "On differentiating eigenvalues and eigenvectors", Econometric Theory 1 (1985).

    Example:
        >>> turn = 0.9 * torch.tensor([[0.6, -0.8], [0.8, 0.6]])  # a complex pair of modulus 0.9
        >>> spectral_radius(lambda z, _: z @ turn.T, torch.zeros(3, 2)).round(decimals=4)
        tensor([0.9000, 0.9000, 0.9000])
    """
    check_count("iterations", iterations, 2)
    linear = Linearised(Problem.of(step, state, context))
    start = linear.fit([x.normal_(generator=generator) for x in linear.blank(generator)])
    vector, norms = _power(linear.pull, start, iterations)
    alive = ((norms > 0) | norms.isnan()).all(0)  # a direction that J maps to 0 has come to its end: the radius is 0
    radius = torch.where(alive, torch.where(alive, norms, 1).log().mean(0).exp(), 0)
    if not (differentiable and torch.is_grad_enabled()):
        return radius
    modulus = _modulus(linear, vector, _power(linear.push, start, iterations)[0])
    return radius + (modulus - modulus.detach())


def _power(apply: "Product", vector: list[Tensor], iterations: int) -> tuple[list[Tensor], Tensor]:
    """The last unit vector of a power iteration, and the norms `(count, batch)` of the last half of its products."""
    vector, norms = unit_rows(vector)[0], []
    for _ in range(iterations):
        vector, norm = unit_rows(apply(vector))
        norms.append(norm)
    return vector, torch.stack(norms[iterations // 2 :])


def _modulus(linear: "Linearised", left: list[Tensor], right: list[Tensor]) -> Tensor:
    """A number for each example whose derivative is that of the modulus of its largest eigenvalue."""
    (u_real, u_imaginary), _ = _eigenvector(linear.pull, left)
    (v_real, v_imaginary), value = _eigenvector(linear.push, right)

    def product(real: list[Tensor], imaginary: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of that vector, transposed, times v."""
        return (
            row_dot(real, v_real) - row_dot(imaginary, v_imaginary),
            row_dot(real, v_imaginary) + row_dot(imaginary, v_real),
        )

    overlap = torch.complex(*product(u_real, u_imaginary))
    alive = (overlap.abs() > 0) & (value.abs() > 0)
    factor = torch.where(alive, value.conj() / torch.where(alive, value.abs() * overlap, 1), 0)
    real, imaginary = product(linear.pull(u_real, graph=True), linear.pull(u_imaginary, graph=True))
    return factor.real * real - factor.imag * imaginary


def _eigenvector(apply: "Product", first: list[Tensor]) -> tuple[tuple[list[Tensor], list[Tensor]], Tensor]:
    """Eigenvector (real part, imaginary part) and eigenvalue, of the one largest in modulus, by example.

    From the plane of a vector and its image, which after a power iteration holds the dominant eigenvector or pair:
    of a pair that with a positive imaginary part.
    """
    image = apply(first)
    a = row_dot(first, image)
    rest = [y - _rows(a, y) * x for x, y in zip(first, image, strict=True)]
    second, c = unit_rows(rest)
    other = apply(second)
    b, d = row_dot(first, other), row_dot(second, other)
    mean, square = (a + d) / 2, (a - d).square() / 4 + b * c
    root = square.abs().sqrt()
    value = torch.where(
        square >= 0,
        torch.complex(torch.where(mean >= 0, mean + root, mean - root), torch.zeros_like(mean)),
        torch.complex(mean, root),
    )
    # Where the image is along the vector, there is no plane, and the vector is the eigenvector.
    alone = c <= torch.finfo(a.dtype).eps ** 0.5 * a.abs()
    value = torch.where(alone, torch.complex(a, torch.zeros_like(a)), value)
    along = torch.where(alone, 1, value - d)
    across = torch.where(alone, 0, c)
    real = [_rows(along.real, x) * x + _rows(across, x) * y for x, y in zip(first, second, strict=True)]
    return (real, [_rows(along.imag, x) * x for x in first]), value


class Linearised:
    """One recorded evaluation of a step, for products with its transposed Jacobian."""

    def __init__(self, problem: Problem) -> None:
        if torch.is_inference_mode_enabled():  # nothing would be recorded, and every product would be 0
            raise ContractError("Jacobian products need a recorded step: use torch.no_grad(), not inference_mode()")
        self._measured = problem.layout.measured()
        leaves = list(problem.state)
        with torch.enable_grad():
            for i in self._measured:
                # A name of its own for what the step is given: a context made from the same state is held fixed.
                leaf = leaves[i]
                leaves[i] = leaf.view_as(leaf) if leaf.requires_grad else leaf.detach().requires_grad_()
            after = problem.apply(leaves, problem.context)
        self._inputs = [leaves[i] for i in self._measured]
        self._outputs = [after[i] for i in self._measured]
        self._pulled: tuple[list[Tensor], list[Tensor]] | None = None
        self.size = sum(x[0].numel() for x in self._inputs) if problem.rows else 0

    def blank(self, generator: torch.Generator | None) -> list[Tensor]:
        """Tensors to be filled at random, one a measured leaf, where the generator can fill them."""
        return [
            torch.empty_like(x, requires_grad=False, device=x.device if generator is None else generator.device)
            for x in self._inputs
        ]

    def fit(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """The same vectors on the devices of the leaves."""
        return [v.to(x.device) for v, x in zip(vectors, self._inputs, strict=True)]

    def pull(self, vectors: Sequence[Tensor], graph: bool = False) -> list[Tensor]:
        """`J^T u`, with a graph of its own if asked."""
        pairs = [(y, u) for y, u in zip(self._outputs, vectors, strict=True) if y.requires_grad]
        if not pairs:
            return [torch.zeros_like(x) for x in self._inputs]
        outputs, chosen = zip(*pairs, strict=True)
        return _gradients(outputs, self._inputs, chosen, graph)

    def push(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """`J v`."""
        if self._pulled is None:
            with torch.enable_grad():
                at = [torch.zeros_like(y).requires_grad_() for y in self._outputs]
                self._pulled = at, self.pull(at, graph=True)
        at, pulled = self._pulled
        pairs = [(p, v) for p, v in zip(pulled, vectors, strict=True) if p.requires_grad]
        if not pairs:
            return [torch.zeros_like(u) for u in at]
        outputs, chosen = zip(*pairs, strict=True)
        return _gradients(outputs, at, chosen, graph=False)


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor], graph: bool
) -> list[Tensor]:
    found = torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, create_graph=graph, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def _rows(numbers: Tensor, like: Tensor) -> Tensor:
    """`(batch,)` in the dtype of a leaf, to be spread over its rows."""
    return numbers.view(-1, *([1] * (like.ndim - 1))).to(like.dtype)


def row_dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Scalar products over all leaves, by row, in float32 at least."""
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in first) else torch.float32
    flat = [
        (x.to(dtype) * y.to(dtype)).reshape(len(x), x[0].numel() if len(x) else 0)
        for x, y in zip(first, second, strict=True)
    ]
    return torch.stack([x.sum(1) for x in flat]).sum(0)


def unit_rows(leaves: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Leaves scaled row by row to a norm of 1 over all of them, and the norm; rows of zeros stay."""
    norm = row_dot(leaves, leaves).sqrt()
    scale = torch.where(norm == 0, 1, norm)
    return [(x / scale.view(-1, *([1] * (x.ndim - 1)))).to(x.dtype) for x in leaves], norm
