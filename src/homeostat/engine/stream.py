"""`solve_stream`: examples from an iterator through a batch that stays full, each yielded as it finishes."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat.engine.backward.functional import refuse_vmap
from homeostat.engine.forward.slots import Leaving, Slots
from homeostat.engine.methods import Anderson, Method
from homeostat.engine.norms import finite_rows
from homeostat.engine.problem import Problem
from homeostat.engine.solution import Status
from homeostat.engine.solve import resolvable
from homeostat.engine.step_function import StepFunction
from homeostat.engine.stop import Stop, check_count, check_option, check_range, explain_stray_options
from homeostat.errors import ContractError


class _Pending:
    def __repr__(self) -> str:
        return "PENDING"


PENDING = _Pending()
"""What an iterable of contexts may yield while it has nothing: the stream goes on with the examples that it has."""

# An example that was read this many rounds ago goes first, however few there are of its shape.
_PATIENCE = 256


@dataclass(frozen=True, eq=False, repr=False)
class StreamedExample:
    """One example of a stream, finished.

    Attributes:
        index: its place in the input, from 0.
        context: as it was given.
        state: same structure as its start, with the batch dimension of 1; see `Solution.state`.
        steps: applications of `step` up to the one at which it stopped.
        residual: relative residual of the last step, see `Solution.residual`; NaN where no step was taken.
        status: how it ended.
    """

    index: int
    context: Any
    state: Any
    steps: int
    residual: float
    status: Status

    def __repr__(self) -> str:
        return f"StreamedExample {self.index}: {self.status} after {self.steps} steps, residual {self.residual:.1e}"


class SolutionStream(Iterator[StreamedExample]):
    """What `solve_stream` returns: an iterator over finished examples that keeps an account.

    Attributes:
        read: examples taken from the input so far.
        finished: of these, how many are finished.
        rounds: calls of `step` so far.
        row_evaluations: calls of `step` times the rows in each: the true cost.
    """

    def __init__(
        self,
        step: StepFunction,
        start: Callable[[Any], Any],
        contexts: Iterable[Any],
        *,
        batch_size: int,
        look_ahead: int,
        refill: float,
        method: Method,
        stop: Stop | Callable[[Any], Stop],
        sync_every: int | None,
    ) -> None:
        self._step, self._start, self._method, self._stop = step, start, method, stop
        self._sync_every = sync_every
        self._slots, self._most = batch_size, batch_size + look_ahead
        self._join_at = max(1, math.ceil(refill * batch_size))
        self._source: Iterator[Any] | None = iter(contexts)  # None once it has ended
        self._error: Exception | None = None  # of reading; raised when all that was read before is finished
        self._buckets: list[_Bucket] = []
        self._unwanted: deque[int] = deque()
        self._inference = torch.is_inference_mode_enabled()
        self._results = self._run()
        self.read = self.finished = self.rounds = self.row_evaluations = 0

    def __iter__(self) -> "SolutionStream":
        return self

    def __next__(self) -> StreamedExample:
        # One mode for the whole stream, wherever it is read from: tensors of one cannot be written to in the other.
        with torch.inference_mode(self._inference), torch.no_grad():
            found = next(self._results)
        self.finished += 1
        return found

    @property
    def occupancy(self) -> float:
        """Mean share of the slots that was filled, from 0 to 1; NaN before the first round."""
        return self.row_evaluations / (self.rounds * self._slots) if self.rounds else math.nan

    def drop(self, index: int) -> None:
        """Let go of one example that is not finished: it yields no result, and others take its slot. It happens before
        the next round; other threads may ask for it. Nothing happens where it is finished, or has not been read.
        """
        self._unwanted.append(index)

    def close(self) -> None:
        """Let go of everything that is unfinished; there are no further results."""
        self._results.close()
        self._buckets, self._source = [], None

    def __repr__(self) -> str:
        return (
            f"SolutionStream: {self.read} examples read, {self.finished} finished, {self.rounds} rounds, "
            f"{self.row_evaluations} row evaluations, {self.occupancy:.0%} of {self._slots} slots filled"
        )

    def _run(self) -> Generator[StreamedExample, None, None]:
        """The stream itself. Finished examples are yielded before anything is read or computed that could fail."""
        while self._buckets or self._source is not None:
            if self._unwanted:
                self._let_go()
            if not self._buckets and not self._read():
                continue
            bucket = self._choose()
            yield from self._fill(bucket)
            if self._unwanted:  # no step is taken for them
                continue
            if bucket.slots.rows:
                yield from self._advance(bucket)
            if not bucket.size:
                self._buckets.remove(bucket)
        if self._error is not None:
            raise self._error

    def _let_go(self) -> None:
        """Examples that were dropped leave."""
        unwanted = {self._unwanted.popleft() for _ in range(len(self._unwanted))}
        for bucket in self._buckets:
            bucket.waiting = deque(pair for pair in bucket.waiting if pair[0].index not in unwanted)
            bucket.slots.drop(lambda example: example.index in unwanted)
        self._buckets = [bucket for bucket in self._buckets if bucket.size]

    def _choose(self) -> "_Bucket":
        """The bucket that runs next: the fullest one, unless an example has waited too long."""
        if len(self._buckets) == 1:
            return self._buckets[0]
        bucket = min(self._buckets, key=lambda bucket: bucket.oldest().index)
        if self.rounds - bucket.oldest().round > _PATIENCE:
            return bucket
        return max(self._buckets, key=lambda bucket: min(bucket.size, self._slots))

    def _fill(self, bucket: "_Bucket") -> Iterator[StreamedExample]:
        """Let examples join where that is due; yields those that take no step."""
        slots, waiting = bucket.slots, bucket.waiting
        free = self._slots - slots.rows
        if slots.until_open() or (slots.rows and free < self._join_at):
            return
        while len(waiting) < free and sum(b.size for b in self._buckets) < self._most and self._read():
            pass
        new = [waiting.popleft() for _ in range(min(free, len(waiting)))]
        if not new:
            return
        examples, problem = [example for example, _ in new], Problem.together([problem for _, problem in new])
        finite = torch.stack([finite_rows(problem.state[i]) for i in problem.layout.measured()]).all(0)
        able = finite if bucket.stop.max_steps else torch.zeros_like(finite)
        for example, own, starts, is_finite in zip(
            examples, (p for _, p in new), able.tolist(), finite.tolist(), strict=True
        ):
            if not starts:
                status = Status.MAX_STEPS if is_finite else Status.DIVERGED
                yield _result(own, Leaving(example, own.state, 0, math.nan, status))
        joining = able.nonzero().squeeze(1)
        if len(joining):
            who = [examples[row] for row in joining.tolist()]
            slots.join(problem if len(who) == len(examples) else problem.subset(joining), who)

    def _advance(self, bucket: "_Bucket") -> list[StreamedExample]:
        """Some rounds with the rows of one bucket."""
        slots, rows = bucket.slots, bucket.slots.rows
        due = self._slots - rows >= self._join_at and (self._source is not None or bool(bucket.waiting))
        most = slots.until_open() if due else 0
        try:
            count, leaving = slots.advance(most or None)
        except Exception as error:
            places = ", ".join(str(example.index) for example in slots.members())
            error.add_note(f"solve_stream was working on these examples of its input: {places}")
            raise
        self.rounds += count
        self.row_evaluations += count * rows
        return [_result(bucket.like, row) for row in leaving]

    def _read(self) -> bool:
        """Take an example from the input into its bucket; False where there is none, or it could not be taken."""
        if self._source is None:
            return False
        try:
            context = next(self._source)
        except StopIteration:
            self._source = None
            return False
        except Exception as error:
            self._source, self._error = None, error
            return False
        if context is PENDING:
            return False
        try:
            self._put(context)
        except Exception as error:
            error.add_note(f"this was example {self.read} of the input of solve_stream")
            self._source, self._error = None, error
            return False
        self.read += 1
        return True

    def _put(self, context: Any) -> None:
        problem = Problem.of(self._step, self._start(context), context)
        if problem.rows != 1:
            raise ContractError(f"a stream takes one example at a time, (1, ...): this one has {problem.rows} rows")
        example = _Example(self.read, context, self.rounds)
        stop = self._stop if isinstance(self._stop, Stop) else _checked(self._stop(context))
        bucket = next((b for b in self._buckets if b.stop == stop and _alike(b.like, problem)), None)
        if bucket is None:
            slots = Slots(self._method, resolvable(stop, problem), self._sync_every)
            bucket = _Bucket(problem, stop, slots, deque())
            self._buckets.append(bucket)
        _check_shared(bucket.like, problem)
        bucket.waiting.append((example, problem))


@dataclass(frozen=True, eq=False)
class _Example:
    """An example that is not finished."""

    index: int
    context: Any
    round: int
    """At which it was read."""


@dataclass(eq=False)
class _Bucket:
    """Examples of one layout, shape, dtype and device, that stop alike."""

    like: Problem
    """The first one."""
    stop: Stop
    slots: Slots[_Example]
    waiting: deque[tuple[_Example, Problem]]
    """Read, but not yet in the batch."""

    @property
    def size(self) -> int:
        """Examples that are not finished."""
        return self.slots.rows + len(self.waiting)

    def oldest(self) -> _Example:
        """The example that was read first."""
        members = self.slots.members()
        return members[0] if members else self.waiting[0][0]


@explain_stray_options
def solve_stream(
    step: StepFunction,
    start: Callable[[Any], Any],
    contexts: Iterable[Any],
    *,
    batch_size: int,
    look_ahead: int | None = None,
    refill: float = 0.125,
    method: Method = Anderson(),  # noqa: B008 - options are frozen values
    stop: Stop | Callable[[Any], Stop] = Stop(),  # noqa: B008
    sync_every: int | None = None,
) -> SolutionStream:
    """Solve examples from an iterable in a batch that stays full, and yield each as it finishes. For inference.

    When examples finish, others take their slots, so that a few slow examples hold up nobody. The answer, the steps and
    the status of an example are, to rounding, those of `solve(step, start(context), context, method=..., stop=...)`,
    whoever its neighbours are and whenever it joined them.

    Examples of different shapes, dtypes, structures or devices never share a call of `step`. One group runs at a time:
    the one that fills most slots, or that with the oldest example once this was read 256 rounds ago, so that each
    example is finished after a bounded number of rounds. Of every group at most `batch_size` examples are iterated, and
    of all groups together at most `batch_size + look_ahead` are held, waiting ones included. Where all examples are
    alike no more than `batch_size` are held, and nothing is read before there is a slot for it.

    It is lazy: reading and computing happen while a result is asked for. All of it, `contexts` and `start` included,
    runs without gradients, and in inference mode if that was on when `solve_stream` was called. What was read is
    finished before an error in reading is raised (one of `contexts`, of `start`, or of an example that breaks the
    contract); an error in `step` is raised at once, with a note that names the examples it was working on.

    Args:
        step: the map, as in `solve`; it gets up to `batch_size` rows.
        start: from the context of one example to its start, both with a batch dimension of 1. Called in the order of
            the input.
        contexts: the context of one example after the other; per-example leaves have a batch dimension of 1. Parts
            marked `Shared` must be the same objects, or equal, in all examples that are alike and held together. Where
            it yields `PENDING`, there is nothing to read now, and the examples that are held go on; an iterable that
            knows that none is held had better wait.
        batch_size: number of slots.
        look_ahead: number of examples that may be held beyond `batch_size` to find some of one shape; None takes
            `batch_size`.
        refill: share of the slots that has to be free before others join, from 0 to 1; one slot at least. Those that
            join together have a stopping test of their own until the last of them is finished, and joining copies the
            batch with its histories: a small share keeps the slots full, a large one saves time between steps.
        method: how to iterate.
        stop: when an example stops; numbers, not tensors. Or a function that tells it from the context of one example,
            called in the order of the input; examples that stop differently never share a call of `step`. A tolerance
            finer than the dtype can resolve is raised to that, with a warning.
        sync_every: look at the stopping tests every so many steps, for devices on which looking means waiting and for
            steps that are cheaper than a look. Examples stay up to so many steps longer; their answers and steps are
            the same. None: the engine chooses, mostly every step, or every fourth where states are small.

    Returns:
        An iterator over `StreamedExample`, in the order in which they finish, with an account of what was done. It has
        a `close()`, and leaving it early needs nothing else.

    Raises:
        ValueError: an impossible `batch_size`, `look_ahead` or `refill`, or a `stop` that has tensors.
        TypeError: something that is not an option object, not callable, or not iterable.
        ContractError: as in `solve`; an example with other than one row, or whose shared parts differ.

    Example:
        >>> import torch
        >>> from homeostat import Picard
        >>> contexts = (torch.tensor([[gain]]) for gain in (0.9, 0.1, 0.5))
        >>> stream = solve_stream(lambda z, c: c * z + 1, torch.zeros_like, contexts, batch_size=2, method=Picard())
        >>> for example in stream:
        ...     print(example.index, example.status, example.steps, round(example.state.item(), 2))
        1 CONVERGED 5 1.11
        2 CONVERGED 14 2.0
        0 CONVERGED 67 9.99
        >>> stream.read, stream.finished
        (3, 3)
    """
    batch_size = check_count("batch_size", batch_size)
    look_ahead = batch_size if look_ahead is None else check_count("look_ahead", look_ahead, 0)
    refill = check_range("refill", refill, 0, "from 0 to 1", high=1)
    if sync_every is not None:
        sync_every = check_count("sync_every", sync_every)
    check_option("method", method, Method, "hs.Anderson()")
    if isinstance(stop, type) or not callable(stop):
        _checked(stop)
    for name, value in (("step", step), ("start", start)):
        if not callable(value):
            raise TypeError(f"{name} must be a function, not {type(value).__name__}")
    refuse_vmap()
    return SolutionStream(
        step,
        start,
        contexts,
        batch_size=batch_size,
        look_ahead=look_ahead,
        refill=refill,
        method=method,
        stop=stop,
        sync_every=sync_every,
    )


def _checked(stop: Any) -> Stop:
    check_option("stop", stop, Stop, "hs.Stop(rtol=1e-4)")
    for name, value in (("rtol", stop.rtol), ("max_steps", stop.max_steps)):
        if isinstance(value, Tensor):
            raise ValueError(f"stop.{name} must be one number in a stream, not a tensor")
    return stop


def _result(like: Problem, row: Leaving[_Example]) -> StreamedExample:
    example, state = row.member, like.layout.build(row.leaves, marks=True)
    return StreamedExample(example.index, example.context, state, row.steps, row.residual, row.status)


def _alike(first: Problem, second: Problem) -> bool:
    """Whether two examples can share a batch, but for the values of their shared parts."""
    return (
        first.layout == second.layout
        and first.context_layout == second.context_layout
        and _shapes(first.state, first.layout.kinds) == _shapes(second.state, second.layout.kinds)
        and _shapes(first.context, first.context_layout.kinds) == _shapes(second.context, second.context_layout.kinds)
    )


def _shapes(leaves: Sequence[Any], kinds: Sequence[str]) -> list[object]:
    return [(x.shape, x.dtype, x.device) for x, kind in zip(leaves, kinds, strict=True) if kind != "shared"]


def _check_shared(first: Problem, second: Problem) -> None:
    layout = first.context_layout
    for name, kind, ours, theirs in zip(layout.names, layout.kinds, first.context, second.context, strict=True):
        if kind == "shared" and not _same(ours, theirs):
            raise ContractError(f"{name} is marked Shared, but differs from that of the examples before")


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = first.dtype == second.dtype and first.device == second.device
        return alike and torch.equal(first, second)
    try:
        return bool(first == second)
    except (RuntimeError, ValueError, TypeError):  # containers of arrays have no answer
        return False
