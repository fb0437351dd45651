"""Where an iteration starts: distributions over initial states, as data.

A start is drawn in the shape of a template, usually the model's own start, so that it fits any state. Every example
has a random stream of its own, found from the start's seed and the example's index, so that what an example starts
from depends neither on its batch nor on the device.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from homeostat.engine.nest import Layout, flatten
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

    def like(self, template: Any, projection: Callable[[], Any] | None = None) -> Any:
        """A state in the structure of `template`; leaves that are not measured keep the template's values.

        Args:
            template: a state, usually the model's own start.
            projection: gives the model's projection of its input, for starts that ask for it.

        Raises:
            ContractError: the template has another number of rows than the start has indices; a projection is asked
                for that there is not, or that does not have the shape of the state.
        """
        leaves, layout, indices = self._opened(template)
        for i in layout.measured():
            leaves[i] = self._fill(leaves[i], i, indices)
        return layout.build(leaves, marks=True)

    def _opened(self, template: Any) -> tuple[list[Tensor], Layout, Sequence[int]]:
        """Leaves of a template, how they make it up, and the place of each row among all examples."""
        leaves, layout = flatten(template, "state")
        rows = len(leaves[0])
        indices = range(rows) if self.indices is None else self.indices
        if len(indices) != rows:
            raise ContractError(f"the start is for {len(indices)} examples, the state has {rows} rows")
        return leaves, layout, indices

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def _draw(
        self, leaf: Tensor, position: int, indices: Sequence[int], law: Literal["gaussian", "uniform"], *more: int
    ) -> Tensor:
        """Float32 numbers in the shape of a leaf, each row from a stream of its own: N(0, 1), or U(0, 1)."""
        drawn = torch.empty(leaf.shape, dtype=torch.float32)
        generator = torch.Generator()
        fill = torch.randn if law == "gaussian" else torch.rand
        for row, index in enumerate(indices):
            generator.manual_seed(stream_seed(self.seed, index, position, *more))
            fill(leaf.shape[1:], generator=generator, out=drawn[row])
        return drawn


class Own(_Start):
    """The model's own start, as it is.

    Example:
        >>> Own().like(torch.ones(2, 3)).sum()
        tensor(6.)
    """

    kind: Literal["own"] = "own"

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        return leaf


def own_start(rows: int) -> Own:
    """The model's own start as a prediction takes it: where a model draws it, the draw is the same for every example,
    so that an answer depends neither on its place in a batch nor on who shares it.

    Example:
        >>> own_start(3).indices
        (0, 0, 0)
    """
    return Own().seeded(0, [0] * rows)


class Zeros(_Start):
    """All zeros.

    Example:
        >>> Zeros().like(torch.ones(2, 3)).sum()
        tensor(0.)
    """

    kind: Literal["zeros"] = "zeros"

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        return torch.zeros_like(leaf)


class Projection(_Start):
    """The model's own projection of its input, as the authors' code of the path-independence paper starts.

    Only a model that has one can start so: `Net.projection`.

    Source:
        Anil et al., NeurIPS 2022, arXiv 2211.09961 (code: the solver starts from a convolution of the input).

    Example:
        >>> Projection().like(torch.zeros(2, 3), lambda: torch.full((2, 3), 7.0)).sum()
        tensor(42.)
    """

    kind: Literal["projection"] = "projection"

    def like(self, template: Any, projection: Callable[[], Any] | None = None) -> Any:
        if projection is None:
            raise ContractError(
                "this model has no projection of its input to start from; choose another start, or give its "
                "initial_state one: start.like(template, projection)"
            )
        leaves, layout, _ = self._opened(template)
        projected, other = flatten(projection(), "state")
        shapes = [[tuple(leaf.shape) for leaf in one] for one in (projected, leaves)]
        if other.names != layout.names or shapes[0] != shapes[1]:
            raise ContractError(
                f"the projection has leaves {_listed(other.names, shapes[0])}, the state has "
                f"{_listed(layout.names, shapes[1])}"
            )
        for i in layout.measured():
            leaves[i] = projected[i].to(leaves[i].dtype)
        return layout.build(leaves, marks=True)


def _listed(names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))


class Noise(_Start):
    """Independent noise on every entry.

    Args:
        scale: of `"gaussian"` noise the standard deviation; `"uniform"` noise lies between -scale and scale, which is a
            standard deviation of scale / sqrt(3).

    Example:
        >>> Noise(scale=2.0).like(torch.zeros(100, 300)).std().round()
        tensor(2.)
        >>> bool(Noise(distribution="uniform").like(torch.zeros(100, 300)).abs().max() <= 1)
        True
    """

    kind: Literal["noise"] = "noise"
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    distribution: Literal["gaussian", "uniform"] = "gaussian"

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        noise = self._draw(leaf, position, indices, self.distribution)
        if self.distribution == "uniform":
            noise = 2 * noise - 1
        return (self.scale * noise).to(device=leaf.device, dtype=leaf.dtype)


class Perturbed(_Start):
    """The model's own start with Gaussian noise added, for models whose own start means something: a learned one.

    Args:
        scale: standard deviation of the noise.

    Example:
        >>> Perturbed(scale=0.1).like(torch.ones(100, 300)).mean().round(decimals=2)
        tensor(1.)
    """

    kind: Literal["perturbed"] = "perturbed"
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        noise = self.scale * self._draw(leaf, position, indices, "gaussian")
        return leaf + noise.to(device=leaf.device, dtype=leaf.dtype)


# Streams beside those of the noise itself.
_WHICH, _MASK = 1, 2


class Mixed(_Start):
    """Zeros and noise by turns, in one of the three ways that go by the name of "mixed init".

    * `by="example"`: Gaussian noise for a share of the examples, spread evenly, and zeros for the rest. The paper's.
    * `by="call"`: all examples of a call start alike: from uniform noise with chance `share`, a third if not given, and
      otherwise from zeros or from the model's projection with equal chance. The authors' code, where each has a third
      and the noise lies between -1 and 1. Which one it is comes from the seed alone.
    * `by="element"`: each entry by itself is Gaussian noise with chance `share`, and otherwise zero. torchdeq's
      `mixed_init`, where the chance is one half.

    Source:
        Anil et al., NeurIPS 2022, arXiv 2211.09961, and its code; torchdeq 0.1.0.

    Example:
        >>> state = Mixed(share=0.5).like(torch.zeros(4, 3))
        >>> (state == 0).all(1)
        tensor([ True, False,  True, False])
    """

    kind: Literal["mixed"] = "mixed"
    by: Literal["example", "call", "element"] = "example"
    share: float = Field(default=0.5, ge=0, le=1)
    """Share of examples, calls or entries that are noise."""
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Of Gaussian noise the standard deviation, of uniform noise the bound."""

    @model_validator(mode="before")
    @classmethod
    def _a_third(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("by") == "call" and "share" not in given:
            return {**given, "share": 1 / 3}
        return given

    def like(self, template: Any, projection: Callable[[], Any] | None = None) -> Any:
        if self.by != "call":
            return super().like(template, projection)
        place = torch.rand((), generator=torch.Generator().manual_seed(stream_seed(self.seed, _WHICH))).item()
        own = {"seed": self.seed, "indices": self.indices}
        if place < self.share:
            return Noise(scale=self.scale, distribution="uniform", **own).like(template, projection)
        kind = Zeros if place < (1 + self.share) / 2 else Projection
        return kind(**own).like(template, projection)

    def _fill(self, leaf: Tensor, position: int, indices: Sequence[int]) -> Tensor:
        noise = self.scale * self._draw(leaf, position, indices, "gaussian")
        if self.by == "element":
            noise[self._draw(leaf, position, indices, "uniform", _MASK) >= self.share] = 0
        else:
            quiet = [int((i + 1) * self.share) == int(i * self.share) for i in indices]
            noise[torch.tensor(quiet, dtype=torch.bool)] = 0
        return noise.to(device=leaf.device, dtype=leaf.dtype)


Start = Annotated[Own | Zeros | Projection | Noise | Perturbed | Mixed, Field(discriminator="kind")]
