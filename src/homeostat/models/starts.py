"""Where an iteration starts: distributions over initial states, as data.

A start is drawn in the shape of a template, usually the model's own start, so that it fits any state. Every example
has a random stream of its own, found from the start's seed and the example's index, so that what an example starts
from depends neither on its batch nor on the device.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from homeostat.engine.nest import flatten
from homeostat.errors import ContractError

_STRIDE = 0x9E3779B97F4A7C15  # odd, so that multiples of it do not repeat within 64 bits


def stream_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, such that near numbers give unrelated seeds.

    Example:
        >>> stream_seed(0, 1) != stream_seed(1, 0)
        True
    """
    value = 0
    for number in numbers:  # splitmix64, one round for each number
        value = (value + number + 1) * _STRIDE % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        value ^= value >> 31
    return value >> 1


class _Start(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0)
    indices: tuple[int, ...] | None = Field(default=None, repr=False)
    """Place of each row among all examples; None counts the rows of the batch."""

    def seeded(self, seed: int, indices: Sequence[int]) -> Self:
        """The same distribution for the examples `indices`, drawn with `seed`."""
        return self.model_copy(update={"seed": seed, "indices": tuple(indices)})

    def like(self, template: Any) -> Any:
        """A state in the structure of `template`; leaves that are not measured keep the template's values.

        Raises:
            ContractError: the template has another number of rows than the start has indices.
        """
        leaves, layout = flatten(template, "state")
        rows = len(leaves[0])
        indices = range(rows) if self.indices is None else self.indices
        if len(indices) != rows:
            raise ContractError(f"the start is for {len(indices)} examples, the state has {rows} rows")
        for i in layout.measured():
            leaves[i] = self._fill(leaves[i], i, indices)
        return layout.build(leaves, marks=True)

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def _gaussian(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        noise = torch.empty(leaf.shape, dtype=torch.float32)
        generator = torch.Generator()
        for row, index in enumerate(indices):
            generator.manual_seed(stream_seed(self.seed, index, position))
            torch.randn(leaf.shape[1:], generator=generator, out=noise[row])
        return noise


class Own(_Start):
    """The model's own start, as it is.

    Example:
        >>> Own().like(torch.ones(2, 3)).sum()
        tensor(6.)
    """

    kind: Literal["own"] = "own"

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        return leaf


class Zeros(_Start):
    """All zeros.

    Example:
        >>> Zeros().like(torch.ones(2, 3)).sum()
        tensor(0.)
    """

    kind: Literal["zeros"] = "zeros"

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        return torch.zeros_like(leaf)


class Noise(_Start):
    """Independent Gaussian noise with standard deviation `scale`.

    Example:
        >>> Noise(scale=2.0).like(torch.zeros(100, 300)).std().round()
        tensor(2.)
    """

    kind: Literal["noise"] = "noise"
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        return (self.scale * self._gaussian(leaf, position, indices)).to(device=leaf.device, dtype=leaf.dtype)


class Mixed(_Start):
    """Gaussian noise for a share of the examples, spread evenly, and zeros for the rest: the paper's "mixed init".

    Example:
        >>> state = Mixed(share=0.5).like(torch.zeros(4, 3))
        >>> (state == 0).all(1)
        tensor([ True, False,  True, False])
    """

    kind: Literal["mixed"] = "mixed"
    share: float = Field(default=0.5, ge=0, le=1)
    """Share of examples that start from noise."""
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        noise = self.scale * self._gaussian(leaf, position, indices)
        quiet = torch.tensor([int((i + 1) * self.share) == int(i * self.share) for i in indices], dtype=torch.bool)
        noise[quiet] = 0
        return noise.to(device=leaf.device, dtype=leaf.dtype)


Start = Annotated[Own | Zeros | Noise | Mixed, Field(discriminator="kind")]
