"""Section 4: a multiscale equilibrium model on small images, implicit against unrolled."""

from homeostat.probes.report.words import number
from homeostat.probes.results import Estimate
from homeostat.studies.claims import Above, Below, Claim, decide
from homeostat.studies.figures import Axis, Table
from homeostat.studies.gaps import Gaps
from homeostat.studies.reading import in_figures, in_percent
from homeostat.studies.statistics import change
from homeostat.studies.study import Content, Section, Values
from homeostat.studies.test_like_you_train.equilibria import Column, Measured, equilibria
from homeostat.studies.test_like_you_train.presets import Preset

_LOSS = "cross-entropy in nats"

SWITCH = Claim(
    "images: the training loss is lowest at N",
    "The loss on training images has its minimum at the number of steps of the training",
    "overparametrised: D >= 0",
    "share of nets whose lowest training loss over all budgets is exactly at N, for each gradient",
    Above(0.5),
)
HURT = Claim(
    "images: more steps raise the training loss",
    "The most steps of the test, far more than in training, raise the loss on training images",
    "overparametrised: D >= 0",
    f"D at the most steps, training images: {_LOSS} less that at N",
    Above(0.0),
)
HELD_OUT = Claim(
    "images: more steps do not raise held-out accuracy",
    "More steps than in training do not make answers on held-out images better",
    "no figure that could be read",
    "held-out accuracy at the most steps less that at N",
    Below(0.01),
)
FREER = Claim(
    "images: implicit training is less tied to its budget",
    "A net trained with the implicit gradient loses less by more steps than one trained through its steps",
    "not asked",
    f"D at the most steps, training images, unrolled minus implicit ({_LOSS})",
    Above(0.0),
)


def section_4(preset: Preset) -> Section:
    """Both gradients by horizons."""
    nets = equilibria(
        preset,
        "multiscale-digits",
        horizons=preset.image_horizons,
        seeds=preset.image_seeds,
        budgets=preset.image_budgets,
        count=preset.image_count,
        seconds=3.0,
    )

    def build(values: Values) -> Content:
        found = Measured(nets, values)
        claims = (
            decide(SWITCH, found.lowest_at_horizon(), f"Minima by seed: {found.minima()}."),
            decide(HURT, found.deep_gaps("training")),
            decide(
                HELD_OUT,
                [
                    (f"{gradient}, N = {horizon}", _gained(found.gaps("held-out", gradient, horizon), found.deepest))
                    for gradient, horizon in found.kinds
                    if horizon < found.deepest
                ],
            ),
            decide(FREER, found.unrolled_less_implicit(), found.fits()),
        )
        figure = found.panels(
            "images",
            "A line for each training budget N; means over seeds and images with 95 % intervals.",
            (
                Column("training", "training loss", "training", Axis(_LOSS, scale="log"), Gaps.loss),
                Column("held-out", "held-out accuracy", "held-out", Axis("accuracy", percent=True), Gaps.exact),
            ),
        )
        return Content(claims, (figure,), (_table(found),))

    return Section(
        4,
        "images",
        "Images: a multiscale equilibrium model",
        "A small multiscale equilibrium model on scikit-learn's digits, trained with exactly N plain steps from zeros, "
        "converged or not, by the implicit gradient (5 products of GMRES at the state that N steps reach) or through "
        "its steps: what do other numbers of steps do to its training images and to held-out ones?",
        (SWITCH, HURT, HELD_OUT, FREER),
        tuple(job for one in nets for job in one.jobs),
        build,
    )


def _gained(gaps: Gaps, budget: int) -> Estimate:
    """Change of accuracy from the horizon to a budget."""
    return change(gaps.hits(gaps.horizon), gaps.hits(budget))


def _table(found: Measured) -> Table:
    deepest = found.deepest
    rows = []
    for gradient, horizon in found.kinds:
        training, held_out = (found.gaps(data, gradient, horizon) for data in ("training", "held-out"))
        rows.append(
            (
                gradient,
                str(horizon),
                in_figures(training.loss(horizon), 4),
                in_figures(training.gap(deepest), 4),
                in_percent(held_out.exact(horizon)),
                in_percent(_gained(held_out, deepest)),
                in_figures(held_out.gap(deepest), 3),
                f"{number(training.residual(horizon))}, {number(training.residual(deepest))}",
                found.adjoint_residual(gradient, horizon),
                found.seconds(gradient, horizon),
            )
        )
    return Table(
        f"Loss: {_LOSS}; D: loss at {deepest} steps less that at N; 95 % intervals over seeds and images. Residual: "
        f"RMS(f(z) - z) / RMS(f(z)), median over training images, at N and at {deepest} steps; of the adjoint: "
        "RMS(J'u + g - u) / RMS(J'u + g) in the last training step",
        (
            "Gradient", "N", "Training loss at N", "D, training", "Held-out accuracy at N", f"Change at {deepest}",
            "D, held-out", "Residual", "Adjoint's residual", "Seconds of training",
        ),
        tuple(rows),
    )  # fmt: skip
