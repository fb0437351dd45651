"""Noise that is found from keys: the same key gives the same numbers, in any batch, at any time, on any device.

A model that draws noise in its steps would otherwise answer differently whenever its batch changes. Here each example
has a 64-bit key; numbers are found by hashing the key and their place with the rounds of splitmix64, on the device.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from homeostat.errors import InputError

_STRIDE = 0x9E3779B97F4A7C15 - 2**64  # as signed numbers: torch has no arithmetic on unsigned ones
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shifted(bits: Tensor, by: int) -> Tensor:
    """The bits moved right, with zeros behind them; `>>` alone would repeat the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def mixed(keys: Tensor) -> Tensor:
    """One round of splitmix64 on int64: near keys become unrelated ones."""
    bits = keys + _STRIDE
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def fingerprints(inputs: object) -> Tensor:
    """`(batch,)` int64: a key of each example, found from what it holds, bit by bit, and from nothing else.

    Args:
        inputs: a tensor or a nest of tensors, batch first.

    Raises:
        InputError: there is no tensor.

    Example:
        >>> a, b = fingerprints(torch.tensor([[1, 2], [2, 1]]))
        >>> bool(a == fingerprints(torch.tensor([[1, 2]]))[0]), bool(a == b)
        (True, False)
    """
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    if not leaves:
        raise InputError("inputs must be a tensor or a nest of tensors, batch first")
    keys = torch.zeros(len(leaves[0]), dtype=torch.int64, device=leaves[0].device)
    for leaf in leaves:
        flat = leaf.detach().reshape(len(leaf), -1)
        if flat.is_floating_point():
            sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
            flat = flat.contiguous().view(sizes[flat.element_size()])
        places = torch.arange(flat.shape[1], device=flat.device) * _STRIDE
        keys = mixed(keys + mixed(mixed(flat.to(torch.int64)) + places).sum(1))
    return keys


def uniforms(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Float32 numbers `(batch, *shape)` between 0 and 1, both left out."""
    return _unit(_shifted(_hashes(keys, math.prod(shape)), 40)).view(len(keys), *shape)


def normals(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Float32 numbers `(batch, *shape)` from N(0, 1), by the Box-Muller transform.

    Example:
        >>> keys = torch.tensor([3, 4])
        >>> bool((normals(keys, (5,))[1] == normals(keys[1:], (5,))[0]).all())
        True
    """
    count = math.prod(shape)
    bits = _hashes(keys, (count + 1) // 2)
    radius = torch.sqrt(-2 * torch.log(_unit(_shifted(bits, 40))))
    angle = 2 * math.pi * _unit(_shifted(bits, 16) & 0xFFFFFF)
    both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return both[:, :count].reshape(len(keys), *shape)


def _hashes(keys: Tensor, count: int) -> Tensor:
    return mixed(keys[:, None] + torch.arange(count, device=keys.device) * _STRIDE)


def _unit(bits: Tensor) -> Tensor:
    """24 bits as a number between 0 and 1."""
    return (bits.float() + 0.5).clamp(max=2**24 - 1) / 2**24
