"""One batch under attack: its clean run, the searches, the starts that need no gradient, and the worst of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homeostat.engine.problem import Problem
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Noise, Own, stream_seed
from homeostat.probes.attacks.objective import Ball, Score, Unrolled, answer_score, latent_score
from homeostat.probes.attacks.search import Method, climb, project, row_norms
from homeostat.probes.cycles import compare, null_cosines, phases
from homeostat.probes.examples import ExampleBatch
from homeostat.probes.judge import Judge
from homeostat.probes.repeatable import check_finite
from homeostat.probes.starts.runs import Ended, agree, run_from
from homeostat.probes.starts.states import partners

_NEXT_TO = 0.01
"""Distance from the model's own start at which the first restart begins, in radii: at its own start a run is already
where it should not be, and there is no way up from there."""

_BLIND = (
    "no gradient comes back from the state to the start (step detaches it, or has none): the searches are random, and "
    "prove little"
)
_ALONE = "an example that is alone in its batch is not started from another one's limit, and has no null baseline"


@dataclass(frozen=True)
class Plan:
    """What is done to every batch."""

    model: IteratedModel
    judge: Judge
    steps: int
    objective: str
    method: Method
    restarts: int
    iterations: int
    grad_steps: int
    rtol: float
    seed: int


@dataclass(frozen=True)
class Worst:
    """The worst of some starts, `(rows,)` each."""

    cosine: np.ndarray
    correct: np.ndarray | None
    agreement: np.ndarray | None
    failed: np.ndarray

    def with_(self, other: "Worst") -> "Worst":
        """The worse of two, figure by figure."""

        def both(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
            return None if a is None or b is None else a & b

        return Worst(
            cosine=np.minimum(self.cosine, other.cosine),
            correct=both(self.correct, other.correct),
            agreement=both(self.agreement, other.agreement),
            failed=self.failed | other.failed,
        )


class AttackedBatch:
    """The clean run of a batch, made at once, and what an adversary makes of it."""

    def __init__(self, plan: Plan, batch: ExampleBatch) -> None:
        self._plan, self._batch = plan, batch
        model = plan.model
        self._context = model.encode(batch.inputs)
        own = model.initial_state(self._context, Own().seeded(plan.seed, batch.indices))
        self._problem = Problem.of(model.step, own, self._context)
        self._measured = self._problem.layout.measured()
        check_finite(self._problem.state, self._measured, model.name, "its own start", batch.indices)
        self._ball = Ball(self._problem)
        self.entries = self._ball.entries
        self.dtype = str(self._problem.state[self._measured[0]].dtype).removeprefix("torch.")
        self.evaluations = 0
        self.notes: list[str] = [_ALONE] if batch.rows == 1 else []
        self._clean = self._run(self._problem.state)
        null, evaluations = null_cosines(self._problem, self._clean.end)
        self.evaluations += evaluations
        self.null = null.cpu().numpy()
        norms = row_norms(self._ball.flat(self._clean.end.leaves)) / self.entries**0.5
        self.sizes = norms[~self._clean.end.failed].cpu().numpy()
        """Root mean square of each limit that is finite."""

    def worst(self, radius: float) -> tuple[Worst, Worst, Worst]:
        """The clean run, the worst with the starts that need no gradient, and the worst of all.

        Args:
            radius: of the ball, as root mean square.
        """
        length = radius * self.entries**0.5
        clean = self._judged(self._clean)
        random = clean
        for start in range(self._plan.restarts):
            random = random.with_(self._tried(length * self._direction(start), length))
        if self._batch.rows > 1:
            order = partners(self._batch.rows, self._plan.seed, self._batch.indices.start, self.device)
            random = random.with_(self._tried(self._ball.towards([x[order] for x in self._clean.end.leaves]), length))
        found = random
        score = self._score()
        for restart in range(self._plan.restarts):
            objective = Unrolled(self._problem, self._ball, score, self._looks(restart))
            points = climb(
                objective,
                self._begin(restart, length),
                length,
                method=self._plan.method,
                iterations=self._plan.iterations,
                directions=lambda iteration, restart=restart: self._direction(restart, iteration),
            )
            self.evaluations += objective.evaluations
            if objective.blind and _BLIND not in self.notes:
                self.notes.append(_BLIND)
            found = found.with_(self._tried(points, length))
        return clean, random, found

    @property
    def device(self) -> torch.device:
        return self._problem.state[0].device

    def _looks(self, restart: int) -> list[int]:
        """Numbers of steps after which a search looks at the state."""
        last = self._plan.grad_steps
        if restart % 2 == 0:
            return [last]
        return [2**power for power in range(last.bit_length()) if 2**power < last] + [last]

    def _begin(self, restart: int, length: float) -> Tensor:
        """Next to the own start at first, then at places whose distance from it is spread evenly over the ball."""
        direction = self._direction(-1 - restart)
        if restart == 0:
            return _NEXT_TO * length * direction
        share = [np.random.default_rng(stream_seed(self._plan.seed, restart, i)).random() for i in self._batch.indices]
        return length * torch.tensor(share, device=direction.device, dtype=direction.dtype)[:, None] * direction

    def _direction(self, *tags: int) -> Tensor:
        """Random unit rows `(rows, entries)`; an example's do not depend on its batch."""
        seed = stream_seed(self._plan.seed, *(tag + 2**20 for tag in tags))
        noise = Noise().seeded(seed, self._batch.indices)
        template = self._problem.layout.build(self._problem.state, marks=True)
        drawn = Problem.of(self._plan.model.step, noise.like(template), self._context).state
        flat = self._ball.flat(drawn)
        return flat / flat.norm(dim=1, keepdim=True)

    def _score(self) -> Score:
        plan, problem, clean = self._plan, self._problem, self._clean
        if plan.objective == "latent":
            found = phases(problem, clean.end)
            self.evaluations += problem.rows * (len(found) - 1)
            return latent_score(self._ball, [(self._ball.flat(leaves), rows) for leaves, rows in found])
        bare = problem.context_layout.build(problem.context)
        outputs: Any = plan.model.decode(problem.layout.build(clean.end.leaves), bare)
        return answer_score(plan.model, plan.judge, problem, self._batch.targets, outputs, clean.answers)

    def _tried(self, points: Tensor, length: float) -> Worst:
        """The run from a point, drawn into the ball, with the full budget."""
        return self._judged(self._run(self._ball.at(project(points, length))))

    def _run(self, leaves: list[Tensor]) -> Ended:
        plan = self._plan
        state = self._problem.layout.build(leaves, marks=True)
        ended = run_from(plan.model, self._context, state, self._batch, plan.judge, steps=plan.steps, rtol=plan.rtol)
        self.evaluations += ended.end.evaluations
        return ended

    def _judged(self, ended: Ended) -> Worst:
        failed = ended.end.failed | self._clean.end.failed
        found = compare(self._problem, self._clean.end, ended.end)
        self.evaluations += found.evaluations
        agreement = agree(ended, self._clean, failed)
        return Worst(
            cosine=found.cosine.cpu().numpy(),
            correct=None if ended.correct is None else ended.correct.cpu().numpy(),
            agreement=None if agreement is None else agreement > 0,
            failed=failed.cpu().numpy(),
        )
