"""Audits made up for the tests of the report: two models as the demo has them, and one of which nothing is known."""

import dataclasses
import math
import random

from homeostat.probes.results import (
    Alignment,
    Audit,
    Budget,
    Clip,
    Difficulty,
    Estimate,
    Example,
    Finding,
    LimitClass,
    Settings,
    Verdict,
)

BUDGETS = (1, 2, 4, 8, 16, 30, 50, 100, 200, 400, 800, 1500)
SIZES = (32, 64, 128, 256, 512, 1024)
RTOL = 1e-3


def wilson(right: float, count: int) -> Estimate:
    z = 1.96
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), count)


def two_models(count: int = 64, sizes: tuple[int, ...] = SIZES) -> list[Audit]:
    """The audits of the demo: one model that may think longer, and one that loses what it had."""
    settings = Settings(
        budgets=BUDGETS,
        settle_rtol=RTOL,
        seed=0,
        noise_scale=1.0,
        dtype="float32",
        device="cpu",
        versions={"homeostat": "0.1.0", "torch": "2.13.0", "python": "3.12.3"},
        seconds=83.2,
    )
    good = Audit(
        model="path-independent recipe",
        description="Prefix sums, 32 bits; half zero and half noise starts, random depth.",
        trained_steps=30,
        unit_cost=1.0,
        parameters=31_474,
        settings=settings,
        difficulties=tuple(_difficulty(size, count, good=True) for size in sizes),
        verdict=Verdict(
            "may think longer",
            "This model may think longer: exact accuracy on 1,024 bits rises from 0 % at its trained horizon of "
            "30 steps to 98.4 % at 1,500 steps.",
            (
                Finding(
                    "gain", "1,024 bits: 0 % [0, 5.7] at 30 steps, 98.4 % [91.7, 99.7] at 1,500 steps, n=64.", True
                ),
                Finding("no loss", "Solved, then lost: 0 of 64 [0, 5.7] at every difficulty.", True),
                Finding(
                    "one end", "Swapped starts end at a cosine of 0.996 [0.992, 0.999]; null 0.41 [0.38, 0.44].", True
                ),
                Finding("settled", "2 of 64 on 1,024 bits are not settled at 1,500 steps.", None),
            ),
        ),
        clips=(_bits_clip("a string of bits, solved", True), _maze_clip()),
    )
    bad = dataclasses.replace(
        good,
        model="fixed recipe",
        description="Prefix sums, 32 bits; zero start, always 30 steps.",
        difficulties=tuple(_difficulty(size, count, good=False) for size in sizes),
        verdict=Verdict(
            "may not think longer",
            "This model may not think longer: exact accuracy on 32 bits falls from 100 % at its trained horizon of "
            "30 steps to 3.1 % at 1,500 steps.",
            (
                Finding(
                    "loss", "32 bits: 100 % [94.3, 100] at 30 steps, 3.1 % [0.9, 10.7] at 1,500 steps, n=64.", False
                ),
                Finding("one end", "Noise starts end at a cosine of 0.52 [0.44, 0.60]; null 0.40 [0.37, 0.43].", False),
                Finding("failed", "3 of 64 examples on 1,024 bits are not finite after 1,500 steps.", False),
            ),
        ),
        clips=(_bits_clip("a string of bits, never right in full", False),),
    )
    return [good, bad]


def unjudged() -> Audit:
    """A model without a judge, alignment, light cone, clips or a finite residual; one example, which failed."""
    nothing = Estimate(0.0, 0.0, 0.793, 1)
    budgets = tuple(Budget(n, None, None, None, math.nan, math.inf, nothing, 1) for n in (1, 10))
    example = Example(0, None, None, None, None, None, math.nan, "divergence", None, 1)
    difficulty = Difficulty(
        "only", None, budgets, (), {"divergence": 1}, None, (example,), 10, ("swapped starts need two examples.",)
    )
    settings = Settings((1, 10), RTOL, 7, 1.0, "float64", "cpu", {}, 0.4)
    verdict = Verdict("not judged", "There is nothing to judge by.", ())
    return Audit("somebody's model", "", None, 2.5, None, settings, (difficulty,), verdict)


def _difficulty(size: int, count: int, *, good: bool) -> Difficulty:
    draw = random.Random(size + good)
    cone = size // 4
    found = []
    for index in range(count):
        needed = round(cone * draw.uniform(1.05, 1.5)) + 2
        solved = good or size <= 128 or draw.random() < 0.2
        kept = good or draw.random() < 0.03
        failed = 700 + 40 * index if not good and size == 1024 and index < 3 else None
        settled = needed + draw.randint(4, 60) if good and not (size == 1024 and index < 2) else None
        limit: LimitClass = "fixed point" if settled else draw.choice(["cycle", "drift", "drift", "unsettled"])
        found.append(
            Example(
                index=index,
                correct=solved and kept and failed is None,
                first_solved=needed if solved and needed < 1500 else None,
                last_change=needed if kept else draw.randint(900, 1500),
                lost=solved and not kept,
                settled_at=settled,
                residual=draw.uniform(1e-6, 1e-5) if settled else draw.uniform(1e-2, 2e-1),
                limit="divergence" if failed else limit,
                period=draw.choice([2, 2, 5]) if limit == "cycle" and not failed else None,
                failed_at=failed,
            )
        )
    budgets = tuple(_budget(steps, found, good, cone) for steps in BUDGETS)
    table = [[0, 0], [0, 0]]
    for example in found:
        table[0 if example.settled_at else 1][0 if example.correct else 1] += 1
    limits: dict[str, int] = {}
    for example in found:
        limits[example.limit] = limits.get(example.limit, 0) + 1
    last = budgets[-1].exact
    assert last is not None
    starts = tuple(
        Alignment(
            start=start,
            steps=1500,
            cosine=Estimate(mean, mean - spread, min(1.0, mean + spread), count),
            null=Estimate(0.41, 0.38, 0.44, count),
            distance=math.sqrt(max(2 - 2 * mean, 0)),
            agreement=wilson(round(mean * count), count),
            exact=wilson(max(0, round(last.value * count) - number), count),
            failed=0,
        )
        for number, (start, mean, spread) in enumerate(
            (start, (0.9995 - 0.001 * drop if good else 0.62 - 0.05 * drop - size / 9000), 0.0004 if good else 0.06)
            for drop, start in enumerate(("zeros", "noise", "swapped"))
        )
    )
    return Difficulty(
        name=f"{size:,} bits",
        light_cone=cone,
        budgets=budgets,
        alignments=starts,  # type: ignore[arg-type]
        limits=limits,
        settled_correct=((table[0][0], table[0][1]), (table[1][0], table[1][1])),
        examples=tuple(found),
        row_evaluations=count * 1500,
    )


def _budget(steps: int, examples: list[Example], good: bool, cone: int) -> Budget:
    count = len(examples)
    failed = sum(1 for example in examples if example.failed_at is not None and example.failed_at <= steps)
    right = sum(
        1
        for example in examples
        if example.first_solved is not None
        and example.first_solved <= steps
        and (not example.lost or steps < 40 + 6 * example.index)
    )
    settled = sum(1 for example in examples if example.settled_at is not None and example.settled_at <= steps)
    part = min(1.0, 0.5 + 0.5 * min(steps, cone) / cone)
    symbols = part if good else max(0.5, part - 0.1 * math.log10(1 + steps / 40))
    residual = max(2e-6, 0.6 * math.exp(-3.2 * steps / (cone + 12))) if good else 0.5 / (1 + steps / 10) + 0.03
    return Budget(
        steps=steps,
        exact=wilson(right, count),
        symbol=wilson(round(symbols * count * 4), count * 4),
        loss=1.2 * (1.02 - symbols),
        residual_median=residual,
        residual_high=3 * residual,
        settled=wilson(settled, count),
        failed=failed,
    )


def _bits_clip(title: str, solved: bool) -> Clip:
    draw = random.Random(3)
    bits = [draw.randint(0, 1) for _ in range(1024)]
    target = [sum(bits[: place + 1]) % 2 for place in range(1024)]
    steps = tuple(range(0, 300, 4))
    frames = []
    for step in steps:
        reach = step * 5 if solved else min(step * 5, 700)
        row = [
            (2 if answer else 1) if place <= reach and (solved or step < 200 or draw.random() > 0.1) else 0
            for place, answer in enumerate(target)
        ]
        frames.append(tuple(tuple(row[start : start + 64]) for start in range(0, 1024, 64)))
    return Clip(
        title=title,
        steps=steps,
        frames=tuple(frames),
        residuals=tuple(0.5 * math.exp(-step / 40) if solved else 0.2 for step in steps),
        correct=tuple(solved and step * 5 >= 1024 for step in steps),
        labels=("wrong", "0, right", "1, right"),
        colours=("#d9792b", "#cfe0ee", "#1f5f99"),
        difficulty="1,024 bits",
        solved=solved,
    )


def _maze_clip() -> Clip:
    size = 29
    draw = random.Random(5)
    walls = {(r, c) for r in range(size) for c in range(size) if (r % 2 == 0 and c % 2 == 0) or draw.random() < 0.2}
    path = [(1, c) for c in range(1, 28)] + [(r, 27) for r in range(2, 28)]
    steps = tuple(range(60))
    frames = tuple(
        tuple(
            tuple(2 if (r, c) in path[: step + 1] else 1 if (r, c) in walls else 0 for c in range(size))
            for r in range(size)
        )
        for step in steps
    )
    return Clip(
        title="a maze, solved after 53 steps",
        steps=steps,
        frames=frames,
        residuals=tuple(0.3 * 0.9**step for step in steps),
        correct=tuple(step >= 52 for step in steps),
        labels=("free", "wall", "path"),
        colours=("#f4f4f2", "#30343b", "#e0a100"),
        difficulty="14×14",
        solved=True,
    )
