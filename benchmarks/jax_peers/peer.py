# pyright: basic, reportMissingImports=false
"""jaxopt and optimistix on the same cells, in a process and an environment of their own; knows nothing of ours.

Driven by lines of JSON on standard input, one answer a line: so that its runs can alternate with those of the process
that drives it. It times itself, and the pipe is not in its figures.
"""

import json
import os
import sys

# One core before JAX counts them: its thread pools are as large as the set of cores that the process may run on.
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
os.environ["JAX_PLATFORMS"] = "cpu"

import time
import warnings
from functools import partial
from importlib.metadata import version

warnings.simplefilter("ignore")  # jaxopt is no longer maintained and uses what JAX has deprecated

import imaml  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jaxopt  # noqa: E402
import numpy as np  # noqa: E402
import optimistix  # noqa: E402
from jaxopt import linear_solve  # noqa: E402


def mlp(weight, z, x):
    return jnp.tanh(z @ weight + x)


def conv(kernel, z, x):
    # Channels last, which is what XLA's convolution on a CPU is fastest with.
    return jnp.tanh(
        jax.lax.conv_general_dilated(z, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + x
    )


STEPS = {"MLP": mlp, "conv": conv}


def to_jax(name, array):
    """Arrays as the cell wants them; they come in torch's order of axes."""
    if array.ndim == 4:
        array = array.transpose((2, 3, 1, 0) if name == "weight" else (0, 2, 3, 1))
    return jnp.asarray(array)


def to_torch(name, array):
    """The way back."""
    array = np.asarray(array)
    if array.ndim == 4:
        array = array.transpose((3, 2, 0, 1) if name == "weight" else (0, 3, 1, 2))
    return np.ascontiguousarray(array)


class Peer:
    """A loaded cell and the solvers that were compiled for it."""

    def __init__(self):
        self.compiled = {}

    def versions(self):
        return {name: version(name) for name in ("jax", "jaxopt", "optimistix", "numpy")}

    def load(self, cell, path):
        """Weights, start, context and aim of a cell."""
        with np.load(path) as file:
            self.arrays = {name: to_jax(name, file[name]) for name in file.files}
        self.step = STEPS[cell]
        self.compiled = {}
        return {}

    def _solver(self, name, norm_tolerance, rms_tolerance, limit):
        step = self.step
        if name == "jaxopt Picard":
            solver = jaxopt.FixedPointIteration(
                lambda z, w, x: step(w, z, x), maxiter=limit, tol=norm_tolerance, implicit_diff=False
            )
        elif name == "jaxopt Anderson":
            solver = jaxopt.AndersonAcceleration(
                lambda z, w, x: step(w, z, x), history_size=6, maxiter=limit, tol=norm_tolerance, implicit_diff=False
            )
        else:
            solver = optimistix.FixedPointIteration(rtol=0.0, atol=rms_tolerance, norm=optimistix.rms_norm)

            def run(z, w, x):
                found = optimistix.fixed_point(
                    lambda z, args: step(args[0], z, args[1]), solver, z, (w, x), max_steps=limit, throw=False
                )
                return found.value, found.stats["num_steps"]

            return run

        def run(z, w, x):
            found = solver.run(z, w, x)
            return found.params, found.state.iter_num

        return run

    def prepare(self, solver, norm_tolerance, rms_tolerance, limit, out):
        """Compile a solver, run it, and write down where it ended."""
        run = jax.jit(self._solver(solver, norm_tolerance, rms_tolerance, limit))
        self.compiled[solver] = run
        a = self.arrays
        state, iterations = jax.block_until_ready(run(a["state"], a["weight"], a["context"]))
        np.savez(out, state=to_torch("state", state))
        return {"iterations": int(iterations)}

    def run(self, solver, repeats):
        """Seconds of one solve, the mean of some; and processor time over wall time, 1 on one thread."""
        run, a = self.compiled[solver], self.arrays
        processor = time.process_time()
        start = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(run(a["state"], a["weight"], a["context"]))
        seconds = time.perf_counter() - start
        return {"seconds": seconds / repeats, "threads": (time.process_time() - processor) / seconds}

    def gradient(self, norm_tolerance, limit, out):
        """jaxopt's implicit gradient of sum(aim * z) with respect to the weight and the context."""
        a, step = self.arrays, self.step
        solver = jaxopt.FixedPointIteration(
            lambda z, w, x: step(w, z, x),
            maxiter=limit,
            tol=norm_tolerance,
            implicit_diff=True,
            implicit_diff_solve=partial(linear_solve.solve_gmres, tol=1e-6, restart=30, maxiter=3),
        )

        def loss(w, x):
            return (solver.run(a["state"], w, x).params * a["aim"]).sum()

        weight, context = jax.jit(jax.grad(loss, argnums=(0, 1)))(a["weight"], a["context"])
        np.savez(out, weight=to_torch("weight", weight), context=to_torch("context", context))
        return {}

    def imaml_begin(self, dtype, seed):
        """Another meta-training, and the compilation of its outer step: the first of its steps."""
        self.meta = imaml.Training(dtype, seed)
        return self.meta.advance(1)

    def imaml_advance(self, steps):
        """So many outer steps more."""
        return self.meta.advance(steps)


def main():
    peer = Peer()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the answers
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(peer, order.pop("do"))(**order)
        except Exception as error:  # told to the other side, which goes on without this figure
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
