"""Wall time of `predict` by a policy against batches of one fixed budget, on mixed difficulty, in pairs."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Spread, quiet_collector
from homeostat.engine import Stop
from homeostat.inference import Policy, predict
from homeostat.models import Checkpoint
from homeostat.tasks import Task

_BATCH = 64


def measure(
    checkpoint: Checkpoint, task: Task, sizes: list[int], count: int, policy: Policy, budget: int, pairs: int, seed: int
) -> dict[str, Any]:
    """Each size is a group of one shape, of `count` examples, in an order that mixes their difficulty."""
    groups = {size: task.sample(size, count, split="test", seed=seed) for size in sizes}
    stop = Stop(rtol=0, atol=0, max_steps=budget)

    def fixed(inputs: Tensor, targets: Tensor) -> tuple[float, int]:
        right = evaluations = 0
        for first in range(0, len(inputs), _BATCH):
            found = predict(checkpoint.model, inputs[first : first + _BATCH], stop=stop)
            right += int(task.correct(found.outputs, targets[first : first + _BATCH]).sum())
            evaluations += found.row_evaluations
        return right / len(inputs), evaluations

    def policed(inputs: Tensor, targets: Tensor) -> tuple[float, int]:
        found = predict(checkpoint.model, inputs, policy=policy, judge=task, batch_size=_BATCH)
        return float(task.correct(found.outputs, targets).float().mean()), found.row_evaluations

    result: dict[str, Any] = {"budget": budget, "pairs": pairs, "batch": _BATCH, "by_size": {}}
    totals: list[tuple[float, float]] = [(0.0, 0.0)] * pairs
    for size, batch in groups.items():
        inputs, targets = batch
        times = {"fixed": [], "policy": []}
        told: dict[str, Any] = {}
        for pair in range(pairs + 1):  # the first one warms up
            for name, run in (("fixed", fixed), ("policy", policed)):
                with quiet_collector():
                    began = time.perf_counter()
                    accuracy, evaluations = run(inputs, targets)
                    seconds = time.perf_counter() - began
                told[name] = {"accuracy": accuracy, "row_evaluations": evaluations}
                if pair:
                    times[name].append(seconds)
        ratios = tuple(a / b for a, b in zip(times["fixed"], times["policy"], strict=True))
        spread = Spread.of(ratios)
        result["by_size"][f"{size} {task.size_name}"] = {
            "ratio": spread.median, "low": spread.low, "high": spread.high,
            "seconds": {name: float(np.median(values)) for name, values in times.items()}, **told,
        }  # fmt: skip
        totals = [(a + x, b + y) for (a, b), x, y in zip(totals, times["fixed"], times["policy"], strict=True)]
    whole = Spread.of(tuple(a / b for a, b in totals))
    result |= {"ratio": whole.median, "low": whole.low, "high": whole.high, "torch": torch.__version__.split("+")[0]}
    return result
