"""Whether the promise is kept: policies from many fresh calibration sets, each judged on many fresh examples."""

from typing import Any

import numpy as np
from scipy import stats

from benchmarks.stopping.evaluations import stops_of
from homeostat.errors import PolicyError
from homeostat.inference import fit_stopping
from homeostat.probes.courses.courses import Courses


def measure(pool: Courses, fresh: Courses, sets: int, count: int, loss: float, confidence: float) -> dict[str, Any]:
    """Fit a policy on each of `sets` calibration sets of `count` examples, cut from a pool without overlap.

    Its true loss is taken to be that on the `fresh` examples, which no set has seen.
    """
    risks, steps, refused = [], [], 0
    for number in range(sets):
        calibration = pool.at(np.arange(number * count, (number + 1) * count))
        try:
            policy = fit_stopping(calibration, max_accuracy_loss=loss, confidence=confidence, seed=number)
        except PolicyError:
            refused += 1  # no promise was made, so that none can be broken
            continue
        assert policy.guarantee is not None
        stops = stops_of(policy, fresh)
        reference = policy.guarantee.reference_steps
        risks.append(float((fresh.right[:, reference - 1] & ~fresh.right_at(stops)).mean()))
        steps.append(float(stops.mean()))
    broken = sum(risk > loss for risk in risks)
    test = stats.binomtest(broken, sets, 1 - confidence, alternative="greater")
    return {
        "sets": sets,
        "calibration_examples": count,
        "fresh_examples": len(fresh),
        "level": loss,
        "promised_share": 1 - confidence,
        "above_level": broken,
        "refused": refused,
        "share_above": broken / sets,
        "p_value": float(test.pvalue),
        "risk_quantiles": {str(q): float(np.quantile(risks, q)) for q in (0, 0.1, 0.5, 0.9, 1)} if risks else {},
        "mean_steps_quantiles": {str(q): float(np.quantile(steps, q)) for q in (0, 0.5, 1)} if steps else {},
    }
