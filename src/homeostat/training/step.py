"""One training step's loss: runs of the model from their starts, the loss of the task, and the terms added to it."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.engine import Solution, solve
from homeostat.engine.nest import flatten, select
from homeostat.engine.problem import Problem
from homeostat.models.net import Net
from homeostat.models.starts import Noise, Own, Start, stream_seed
from homeostat.nn import jacobian_penalty
from homeostat.tasks import Task
from homeostat.training.gradient import solver_options
from homeostat.training.path_noise import PathNoise
from homeostat.training.recipe import Recipe
from homeostat.training.terms import measured_leaves
from homeostat.training.visit import Carried, Stream, Visit


class TrainingStep(nn.Module):
    """Loss of the rows of one process. A module, so that a strategy can wrap it and reduce its gradients.

    Attributes:
        parts: after a call, what the loss is made of: the task's, and each term before its weight; no graph.
        reached: leaves of the state that the deepest run reached; they keep their graph until the next call.
    """

    def __init__(self, model: Net, task: Task, recipe: Recipe) -> None:
        super().__init__()
        self.model, self._task, self._recipe = model, task, recipe
        self.parts: dict[str, Tensor] = {}
        self.reached: list[Tensor] = []
        self._forward = self._graphed = 0
        self._solutions: list[Solution] = []

    def forward(self, inputs: Any, targets: Any, visit: Visit) -> Tensor:
        recipe, model = self._recipe, self.model
        self._forward = self._graphed = 0
        self._solutions = []
        context = model.encode(inputs)
        start = recipe.start.seeded(visit.stream(Stream.STARTS), visit.indices)
        # Backpropagation through the steps reaches a start that is learned, such as the weights of a meta-learner.
        with torch.set_grad_enabled(recipe.gradient == "unrolled" and visit.carried is None):
            if visit.carried is None:
                state = model.initial_state(context, start)
            else:
                state = self._carry(context, start, visit.carried)
        loss, end = torch.zeros(()), state
        walks = recipe.depth.walks(visit.free, visit.graphed)
        for number, walk in enumerate(walks):
            end = self._run(state, context, visit, walk.free, walk.graphed, number)
            part = self._task.loss(model.decode(end, context), targets).mean()
            loss = part if len(walks) == 1 else loss.to(part) + walk.weight * part
        self.parts = {"loss": loss.detach()}
        self.reached = flatten(end, "state")[0]
        if recipe.jacobian is not None:
            term = self._jacobian(end, context, visit)
            self.parts["jacobian"] = term.detach()
            loss = loss + recipe.jacobian.weight_at(visit.progress) * term
        if recipe.path_penalty is not None:
            term = self._misalignment(end, state, context, visit)
            self.parts["path_penalty"] = term.detach()
            loss = loss + recipe.path_penalty.weight_at(visit.progress) * term
        return loss

    def evaluations(self) -> tuple[int, int, int]:
        """Of the last call, after its backward pass: evaluations of the model's step times rows; those of them that
        kept a graph; and Jacobian products of the adjoint times rows.
        """
        adjoints = [solution.adjoint for solution in self._solutions]
        return self._forward, self._graphed, sum(a.row_evaluations for a in adjoints if a is not None)

    def residuals(self) -> dict[str, float | None]:
        """Of the rows of the last call, after its backward pass, where the gradient was that of a fixed point: the
        median relative residual of the run to it, and of its adjoint solve; None where that is not known.

        A solve that takes a fixed number of steps warns of nothing: this is what tells how far from converged it was.
        """
        if self._recipe.gradient == "unrolled":
            return {}
        adjoints = [solution.adjoint for solution in self._solutions]
        found = {
            "forward": [solution.residual for solution in self._solutions],
            "adjoint": [adjoint.residual for adjoint in adjoints if adjoint is not None],
        }
        medians = {name: float(torch.cat(parts).nanmedian()) if parts else math.nan for name, parts in found.items()}
        return {name: value if math.isfinite(value) else None for name, value in medians.items()}

    def _carry(self, context: Any, start: Start, carried: Carried) -> Any:
        """The state that a pool brings along, with a start where rows are new."""
        leaves, layout = flatten(self.model.initial_state(context, Own()), "state")
        if len(carried.new):
            context_leaves, context_layout = flatten(context, "context")
            some = context_layout.build(select(context_leaves, context_layout, carried.new))
            assert start.indices is not None
            start = start.seeded(start.seed, [start.indices[row] for row in carried.new.tolist()])
            begun, _ = flatten(self.model.initial_state(some, start), "state")
            old = carried.state or leaves
            leaves = [leaf.index_copy(0, carried.new, new) for leaf, new in zip(old, begun, strict=True)]
        else:
            leaves = list(carried.state)
        return layout.build(leaves, marks=True)

    def _run(self, state: Any, context: Any, visit: Visit, free: int, graphed: int, number: int) -> Any:
        """The state after so many steps; `number` tells the noise of several runs apart."""
        if self._recipe.path_noise > 0:
            problem = Problem.of(self.model.step, state, context)
            noise = PathNoise(self._recipe.path_noise, stream_seed(visit.stream(Stream.NOISE), number), visit.indices)
            leaves = noise.walk(problem, free=free, graphed=graphed)
            self._forward += problem.rows * (free + graphed)
            self._graphed += problem.rows * graphed
            return problem.layout.build(leaves, marks=True)
        method, stop, gradient, recorded = solver_options(self._recipe.gradient, free, graphed)
        solution = solve(self.model.step, state, context, method=method, stop=stop, gradient=gradient)
        self._solutions.append(solution)
        self._forward += solution.row_evaluations
        self._graphed += len(solution.steps) * recorded
        return solution.state

    def _jacobian(self, end: Any, context: Any, visit: Visit) -> Tensor:
        leaves, layout = flatten(end, "state")
        rows = len(measured_leaves(end, "the Jacobian penalty")[0])
        generator = torch.Generator(leaves[0].device)
        generator.manual_seed(stream_seed(visit.stream(Stream.PENALTIES), visit.indices[0]))
        still = layout.build([leaf.detach() for leaf in leaves], marks=True)
        self._forward += rows
        self._graphed += rows
        return jacobian_penalty(self.model.step, still, context, generator=generator).mean()

    def _misalignment(self, end: Any, state: Any, context: Any, visit: Visit) -> Tensor:
        penalty = self._recipe.path_penalty
        assert penalty is not None
        walks = self._recipe.depth.walks(visit.free, visit.graphed)
        deepest = walks[-1]
        first, runs = measured_leaves(end, "the path penalty"), []
        for number in range(1 if penalty.between == "start and noise" else 2):
            seed = stream_seed(visit.stream(Stream.PENALTIES), number)
            noise = Noise(scale=penalty.scale).seeded(seed, visit.indices)
            with torch.no_grad():
                begin = self.model.initial_state(context, noise)
            other = self._run(begin, context, visit, deepest.free, deepest.graphed, len(walks) + number)
            runs.append(measured_leaves(other, "the path penalty"))
        return penalty.misalignment(*([first, *runs][-2:])).mean()
