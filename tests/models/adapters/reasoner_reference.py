"""One segment of a recursive reasoner for one example, slowly, from the tensors of a checkpoint as they are named.

Loops over heads and positions in float64; rotary positions as products of complex numbers; norms as divisions.
"""

import math
from typing import Any

import numpy as np


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def normed(x: np.ndarray) -> np.ndarray:
    return np.stack([row / math.sqrt((row**2).mean() + 1e-5) for row in x])


def swiglu(weights: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    both = x @ weights[f"{name}.gate_up_proj.weight"].T
    half = both.shape[1] // 2
    return (silu(both[:, :half]) * both[:, half:]) @ weights[f"{name}.down_proj.weight"].T


def turned(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Entries i and i + half of a row as a complex number, times exp(i turn)."""
    half = len(x) // 2
    product = (x[:half] + 1j * x[half:]) * np.exp(1j * turns)
    return np.concatenate([product.real, product.imag])


def placed(x: np.ndarray, place: int, facts: dict[str, Any]) -> np.ndarray:
    def speeds(size: int) -> np.ndarray:
        return 10000.0 ** (-np.arange(0, size, 2) / size)

    if facts["pos_encodings"] == "rope":
        return turned(x, place * speeds(len(x)))
    if facts["pos_encodings"] == "rope2d":
        row, column = divmod(place, facts["board_width"])
        half = len(x) // 2
        return np.concatenate(
            [turned(x[:half], row * speeds(half)), turned(x[half:], column * speeds(half))],
        )
    return x


def attention(weights: dict[str, np.ndarray], name: str, x: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    n, d = x.shape
    heads = facts["num_heads"]
    size = d // heads
    qkv = x @ weights[f"{name}.qkv_proj.weight"].T
    joined = np.zeros((n, d))
    for head in range(heads):
        q, k, v = (qkv[:, part * d + head * size :][:, :size] for part in range(3))
        q = np.stack([placed(row, i, facts) for i, row in enumerate(q)])
        k = np.stack([placed(row, i, facts) for i, row in enumerate(k)])
        for i in range(n):
            attended = np.exp(q[i] @ k.T / math.sqrt(size))
            joined[i, head * size :][:size] = attended / attended.sum() @ v
    return joined @ weights[f"{name}.o_proj.weight"].T


def level(weights: dict[str, np.ndarray], name: str, x: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    layer = 0
    while f"{name}.layers.{layer}.mlp.down_proj.weight" in weights:
        at = f"{name}.layers.{layer}"
        if f"{at}.mlp_t.down_proj.weight" in weights:
            x = normed(x.T + swiglu(weights, f"{at}.mlp_t", x.T)).T
        else:
            x = normed(x + attention(weights, f"{at}.self_attn", x, facts))
        x = normed(x + swiglu(weights, f"{at}.mlp", x))
        layer += 1
    return x


def embedded(
    weights: dict[str, np.ndarray], tokens: np.ndarray, puzzle: int, prefix: int, facts: dict[str, Any]
) -> np.ndarray:
    x = weights["embed_tokens.embedding_weight"][tokens]
    if prefix:
        long = np.zeros(prefix * x.shape[1])
        row = weights["puzzle_emb.weights"][puzzle]
        long[: len(row)] = row
        x = np.concatenate([long.reshape(prefix, -1), x])
    if "embed_pos.embedding_weight" in weights:
        x = 0.707106781 * (x + weights["embed_pos.embedding_weight"])
    return x * math.sqrt(x.shape[1])


def segment(
    weights: dict[str, np.ndarray], high: np.ndarray, low: np.ndarray, x: np.ndarray, facts: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    share = facts.get("lambda_", 1.0)
    upper = "H_level" if any(key.startswith("H_level") for key in weights) else "L_level"
    for _ in range(facts["H_cycles"]):
        for _ in range(facts["L_cycles"]):
            low = (1 - share) * low + share * level(weights, "L_level", low + high + x, facts)
        high = (1 - share) * high + share * level(weights, upper, high + low, facts)
    return high, low
