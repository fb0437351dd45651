# pyright: basic, reportMissingImports=false
"""Implicit MAML on sinusoids with jaxopt, all of an outer step in one compiled function: tasks, inner solves, Adam."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import jaxopt
from jaxopt import linear_solve

TASKS, SHOTS, QUERIES, WIDTH = 25, 10, 10, 40
INNER_STEPS, PULL, CG_STEPS, RATE = 16, 2.0, 5, 1e-3


def predict(layers, x):
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def fresh(key, dtype):
    """LeCun normal weights, biases of 0."""
    sizes = (1, WIDTH, WIDTH, 1)
    keys = jax.random.split(key, len(sizes) - 1)
    draw = jax.nn.initializers.lecun_normal()
    return [(draw(k, (a, b), dtype), jnp.zeros(b, dtype)) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def tasks(key, dtype):
    """Support and query samples of TASKS sinusoids."""
    of_x, of_amplitude, of_phase = jax.random.split(key, 3)
    x = jax.random.uniform(of_x, (TASKS, SHOTS + QUERIES, 1), dtype, -5.0, 5.0)
    amplitude = jax.random.uniform(of_amplitude, (TASKS, 1, 1), dtype, 0.1, 0.5)
    phase = jax.random.uniform(of_phase, (TASKS, 1, 1), dtype, 0.5, jnp.pi)
    y = amplitude * jnp.sin(x - phase)
    return x[:, :SHOTS], y[:, :SHOTS], x[:, SHOTS:], y[:, SHOTS:]


def inner_loss(phi, theta, x, y):
    pull = sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(phi), jax.tree.leaves(theta), strict=True))
    return jnp.mean((predict(phi, x) - y) ** 2) + 0.5 * PULL * pull


def outer_loss(theta, data):
    solver = jaxopt.GradientDescent(
        inner_loss,
        stepsize=-1.0,
        maxiter=INNER_STEPS,
        maxls=15,
        tol=1e-12,
        acceleration=False,
        implicit_diff=True,
        implicit_diff_solve=partial(linear_solve.solve_cg, maxiter=CG_STEPS, tol=1e-7),
    )

    def one(x, y, asked, answers):
        phi = solver.run(theta, theta, x, y).params
        return jnp.mean((predict(phi, asked) - answers) ** 2)

    return jnp.mean(jax.vmap(one)(*data))


def adam(theta, gradient, mean, square, count):
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
    square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, square, gradient)

    def moved(p, m, v):
        return p - RATE * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)

    return jax.tree.map(moved, theta, mean, square), mean, square


@partial(jax.jit, static_argnames="dtype")
def outer_step(carry, number, key, dtype):
    theta, mean, square = carry
    loss, gradient = jax.value_and_grad(outer_loss)(theta, tasks(jax.random.fold_in(key, number), dtype))
    return adam(theta, gradient, mean, square, number + 1.0), loss


class Training:
    """A meta-training that goes on from order to order."""

    def __init__(self, dtype, seed):
        jax.config.update("jax_enable_x64", dtype == "float64")
        self.dtype = jnp.dtype(dtype)
        of_weights, self.key = jax.random.split(jax.random.key(seed))
        theta = fresh(of_weights, self.dtype)
        zeros = jax.tree.map(jnp.zeros_like, theta)
        self.carry, self.number = (theta, zeros, zeros), 0

    def advance(self, steps):
        """So many outer steps: their seconds, processor time over wall time, and losses."""
        losses = []
        processor, start = time.process_time(), time.perf_counter()
        for _ in range(steps):
            self.carry, loss = outer_step(self.carry, self.number, self.key, self.dtype)
            losses.append(loss)
            self.number += 1
        jax.block_until_ready(self.carry)
        seconds = time.perf_counter() - start
        threads = (time.process_time() - processor) / seconds
        return {"seconds": seconds, "threads": threads, "losses": [float(x) for x in losses]}
