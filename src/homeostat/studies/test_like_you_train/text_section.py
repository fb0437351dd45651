"""Section 5: a sequence equilibrium model on text, implicit against unrolled."""

import math

import numpy as np

from homeostat.probes.report.words import number
from homeostat.probes.results import Estimate
from homeostat.studies.claims import Above, Claim, decide
from homeostat.studies.figures import Axis, Table
from homeostat.studies.gaps import Gaps
from homeostat.studies.reading import in_figures
from homeostat.studies.study import Content, Section, Values
from homeostat.studies.test_like_you_train.equilibria import Column, Data, Measured, equilibria
from homeostat.studies.test_like_you_train.presets import Preset
from homeostat.tasks import Text

_DATA: dict[Data, str] = {"training": "training stretch", "held-out": "held-out stretch"}

SWITCH = Claim(
    "text: the training loss is lowest at N",
    "The loss on the stretch of text that was trained on has its minimum at the number of steps of the training",
    "overparametrised: D >= 0",
    "share of nets whose lowest training loss over all budgets is exactly at N, for each gradient",
    Above(0.5),
)
HURT = Claim(
    "text: more steps raise the training loss",
    "More steps than in training raise the loss on the stretch that was trained on",
    "overparametrised: D >= 0",
    "D at the most steps, training stretch: nats a character less those at N",
    Above(0.0),
)
HELD_OUT = Claim(
    "text: more steps do not lower held-out perplexity",
    "More steps than in training do not make held-out text better foretold",
    "no figure that could be read",
    "D at the most steps, held-out stretch: nats a character less those at N",
    Above(-0.01),
)
FREER = Claim(
    "text: implicit training is less tied to its budget",
    "A net trained with the implicit gradient loses less by more steps than one trained through its steps",
    "not asked",
    "D at the most steps, training stretch, unrolled minus implicit (nats a character)",
    Above(0.0),
)


def section_5(preset: Preset) -> Section:
    """Both gradients by horizons."""
    nets = equilibria(
        preset,
        "sequence-text",
        horizons=preset.text_horizons,
        seeds=preset.text_seeds,
        budgets=preset.text_budgets,
        count=preset.text_count,
        seconds=20.0,
    )

    def build(values: Values) -> Content:
        found = Measured(nets, values)
        claims = (
            decide(SWITCH, found.lowest_at_horizon(), f"Minima by seed: {found.minima()}."),
            decide(HURT, found.deep_gaps("training")),
            decide(HELD_OUT, found.deep_gaps("held-out")),
            decide(FREER, found.unrolled_less_implicit(), found.fits()),
        )
        figure = found.panels(
            "text",
            "A line for each training budget N; exponentiated means over seeds and windows with 95 % intervals.",
            tuple(
                Column(data, words, data, Axis("perplexity a character", scale="log"), perplexity)
                for data, words in _DATA.items()
            ),
        )
        remark = (
            f"Foretelling held-out characters by their frequencies in the training stretch alone has a perplexity of "
            f"{unigram_perplexity():.1f}."
        )
        return Content(claims, (figure,), (_table(found),), (remark,))

    return Section(
        5,
        "text",
        "Text: a sequence equilibrium model",
        "One transformer layer as an equilibrium model, trained to foretell the next character of the package's text "
        "with exactly N plain steps from zeros, converged or not, by the implicit gradient (5 plain adjoint steps at "
        "the state that N steps reach) or through its steps: what do other numbers of steps do to the stretch that was "
        "trained on and to the held-out one?",
        (SWITCH, HURT, HELD_OUT, FREER),
        tuple(job for one in nets for job in one.jobs),
        build,
    )


def perplexity(gaps: Gaps, budget: int) -> Estimate:
    """The exponential of the mean loss, which is in nats a character, and of the ends of its interval."""
    loss = gaps.loss(budget)
    return Estimate(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high), loss.count)


def unigram_perplexity(size: int = 64) -> float:
    """Perplexity of held-out windows under the frequencies of characters in training windows, each counted once more
    than it was seen.

    Example:
        >>> 15 < unigram_perplexity() < 25
        True
    """
    task = Text()
    seen = task.sample(size, 800, split="train", seed=0).targets.numpy().ravel()
    counts = np.bincount(seen, minlength=task.classes) + 1
    held_out = task.sample(size, 90, split="test", seed=0).targets.numpy().ravel()
    return float(np.exp(-np.log(counts / counts.sum())[held_out].mean()))


def _table(found: Measured) -> Table:
    deepest = found.deepest
    rows = []
    for gradient, horizon in found.kinds:
        for data, words in _DATA.items():
            gaps = found.gaps(data, gradient, horizon)
            rows.append(
                (
                    gradient,
                    str(horizon),
                    words,
                    in_figures(perplexity(gaps, horizon), 2),
                    in_figures(perplexity(gaps, deepest), 2),
                    in_figures(gaps.gap(deepest), 4),
                    ", ".join(map(str, gaps.best())),
                    f"{number(gaps.residual(horizon))}, {number(gaps.residual(deepest))}",
                    found.adjoint_residual(gradient, horizon),
                    found.seconds(gradient, horizon),
                )
            )
    return Table(
        f"Perplexity a character; D: nats a character at {deepest} steps less those at N; 95 % intervals over seeds "
        f"and windows. The best budget was chosen afterwards. Residual: RMS(f(z) - z) / RMS(f(z)), median, at N and at "
        f"{deepest} steps; of the adjoint: RMS(J'u + g - u) / RMS(J'u + g) in the last training step",
        (
            "Gradient", "N", "On", "Perplexity at N", f"At {deepest}", "D", "Best budget by seed", "Residual",
            "Adjoint's residual", "Seconds of training",
        ),
        tuple(rows),
    )  # fmt: skip
