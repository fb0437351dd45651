"""One regularisation weight per feature of a logistic regression, tuned on validation data.

The data and the settings are those of a public notebook of hypertorch, whose figures stand beside ours: 1,000 examples
of 20 features, half for training, 100 steps of gradient descent inside, 1,000 steps with momentum outside, and
hypergradients through the last 10 of the 100 steps.

    python examples/logistic_regression_hyperparameters.py
    python examples/logistic_regression_hyperparameters.py --gradient cg --dtype float64
"""

import argparse
import time

import numpy as np
import torch

import homeostat as hs
from homeostat.bilevel import tune_regularisation

PUBLISHED = {0: 0.5744, 990: 0.28051}
GRADIENTS = {
    "unrolled": hs.Unrolled(last=10),
    # 100 steps do not converge: taken as they are, with the gradient of the fixed point they are near.
    "cg": hs.Implicit(hs.CG(), hs.Stop(rtol=1e-6)),
}


def data(dtype: torch.dtype) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Training and validation data: the notebook's, from NumPy's legacy generator with seed 1."""
    random = np.random.RandomState(1)
    oracle = random.randn(20)
    x = random.randn(1000, 20)
    y = (x @ oracle + 0.1 * random.randn(1000) > 0).astype(float)
    # What scikit-learn's train_test_split does with this generator and test_size=0.5.
    order = random.permutation(1000)
    validation, training = order[:500], order[500:]
    (x_train, y_train), (x_valid, y_valid) = (
        (torch.tensor(x[rows], dtype=dtype), torch.tensor(y[rows], dtype=dtype)) for rows in (training, validation)
    )
    return (x_train, y_train), (x_valid, y_valid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gradient", choices=GRADIENTS, default="unrolled")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    training, validation = data(getattr(torch, options.dtype))
    begun = time.perf_counter()
    tuned = tune_regularisation(training, validation, outer_steps=options.steps, gradient=GRADIENTS[options.gradient])
    print(tuned)
    print(f"{time.perf_counter() - begun:.1f} s")
    for step, published in PUBLISHED.items():
        if step < options.steps and options.gradient == "unrolled":
            print(f"step {step}: validation loss {tuned.validation_loss[step]:.5f}, published {published}")


if __name__ == "__main__":
    main()
