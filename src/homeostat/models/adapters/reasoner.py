"""The recursive reasoners TRM, HRM and EqR: one network for the three, written from the facts of their repositories.

All three keep two states per position, z_H and z_L. One *segment*, which is our step, is H_cycles times: L_cycles
updates of z_L from z_H and the input, then one update of z_H from z_L.

* HRM (Wang et al., arXiv 2506.21734) has a network for each of the two states.
* TRM (Jolicoeur-Martineau, arXiv 2510.04871) has one network for both.
* EqR (arXiv 2605.21488) is TRM that starts from truncated Gaussian noise, goes the share `lambda_` of the way at each
  update, and adds Gaussian noise of standard deviation `noise_scale` to it, at test time too.
"""

import math
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat.errors import InputError
from homeostat.models.adapters.keyed_noise import fingerprints, mixed, normals, uniforms
from homeostat.models.adapters.reasoner_layers import Block, CastLinear, Level, Rotation, rotation_1d, rotation_2d
from homeostat.models.adapters.token_answers import TokenAnswers
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Start

_HALF_POWER = 0.707106781  # as it stands in the original repositories: 1 / sqrt(2), to keep the variance
_TRUNCATED_SD = 0.8796256610342398
"""Standard deviation of N(0, 1) cut off at -2 and 2, by which the authors divide so that it becomes the one asked."""


class ReasonerConfig(BaseModel):
    """What a `Reasoner` is made of; names as in the `arch` part of the repositories' `all_config.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["trm", "hrm", "eqr"]
    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    inner_size: int = Field(ge=1)
    """Width inside the SwiGLU over channels."""
    H_cycles: int = Field(ge=1, le=10_000)
    L_cycles: int = Field(ge=1, le=10_000)
    H_layers: int = Field(default=0, ge=0)
    """Of HRM; the others have one network of `L_layers`."""
    L_layers: int = Field(ge=1)
    num_heads: int = Field(default=1, ge=1)
    tokens: tuple[int, int] | None = None
    """Length of the sequence with its prefix, and width inside, of the SwiGLU over positions; None: attention."""
    pos_encodings: Literal["rope", "rope2d", "learned", "absolute", "none"]
    positions: int | None = Field(default=None, ge=1)
    """Rows of the table of learned or absolute positions."""
    board_height: int | None = Field(default=None, ge=1)
    board_width: int | None = Field(default=None, ge=1)
    puzzles: int = Field(default=0, ge=0)
    """Rows of the table of puzzle embeddings; 0: there is none."""
    puzzle_emb_ndim: int = Field(default=0, ge=0)
    prefix: int = Field(default=0, ge=0)
    """Positions that the puzzle embedding takes before the sequence."""
    rms_norm_eps: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    rope_theta: float = Field(default=10_000.0, gt=0, allow_inf_nan=False)
    forward_dtype: Literal["bfloat16", "float16", "float32", "float64"] = "bfloat16"
    halt_max_steps: int | None = Field(default=None, ge=1)
    """Segments that training took at most: the horizon."""
    no_ACT_continue: bool = True
    """Of TRM: it halts by the first output of its Q-head alone, and not by the difference of the two."""
    lambda_: float = Field(default=1.0, gt=0, le=1)
    noise_scale: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    H_init_std: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    L_init_std: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}")
        sections = {"rope": 2, "rope2d": 4}.get(self.pos_encodings, 1)
        if self.tokens is None and self.hidden_size // self.num_heads % sections:
            raise ValueError(
                f"{self.pos_encodings} needs a head size that {sections} divides, not "
                f"{self.hidden_size // self.num_heads}"
            )
        if (self.pos_encodings in ("learned", "absolute")) != (self.positions is not None):
            raise ValueError("positions is for learned and absolute pos_encodings, and these need it")
        if (self.puzzles > 0) != (self.prefix > 0) or (self.puzzles > 0) != (self.puzzle_emb_ndim > 0):
            raise ValueError("puzzles, puzzle_emb_ndim and prefix are all 0 or all above 0")
        if self.puzzle_emb_ndim > self.prefix * self.hidden_size:
            raise ValueError(f"a prefix of {self.prefix} positions is too short for puzzle_emb_ndim")
        if (self.family == "hrm") != (self.H_layers > 0):
            raise ValueError("H_layers is for hrm, and hrm needs it")
        if self.family != "eqr" and (self.lambda_, self.noise_scale) != (1.0, 0.0):
            raise ValueError("lambda_ and noise_scale are for eqr")
        return self


class _Table(nn.Module):
    """Rows to look up, under the key that the repositories give them."""

    def __init__(self, key: str, rows: int, size: int) -> None:
        super().__init__()
        self.register_parameter(key, nn.Parameter(torch.randn(rows, size) / size**0.5))
        self.key = key

    @property
    def rows(self) -> Tensor:
        return getattr(self, self.key)


class Reasoner(TokenAnswers, nn.Module, IteratedModel):
    """Tokens `(batch, length)` to logits `(batch, length, vocab_size)`. A step is one segment.

    `unit_cost` counts evaluations of a layer (mixing over positions and over channels). The state is (z_H, z_L), each
    `(batch, prefix + length, hidden_size)`; that of EqR with noise has a third leaf, the `(batch,)` int64 keys by which
    the noise of the next step is found. So noise is a function of the state, and an example's answer depends on neither
    its batch nor the order of calls: its keys come from its input, from `seed`, and from seed and index of the start.
    Other seeds give other noise. The noise of the steps is the same from every start with the same seed, so that what
    differs between starts is due to the start. `stochastic` says whether there is such noise.

    Args:
        config: what it is made of.
        seed: of EqR's own start and of its noise.
        name: what reports call it.

    Example:
        >>> config = ReasonerConfig(family="trm", vocab_size=11, hidden_size=16, inner_size=8, H_cycles=3, L_cycles=6,
        ...                         L_layers=2, num_heads=2, pos_encodings="rope", forward_dtype="float32")
        >>> model = Reasoner(config)
        >>> model.unit_cost  # 3 cycles of 6 + 1 updates, 2 layers each
        42.0
        >>> from homeostat.models import Own
        >>> context = model.encode(torch.zeros(2, 9, dtype=torch.long))
        >>> state = model.step(model.initial_state(context, Own()), context)
        >>> tuple(model.decode(state, context).shape), tuple(model.score(state, context).shape)
        ((2, 9, 11), (2,))
    """

    def __init__(self, config: ReasonerConfig, *, seed: int = 0, name: str | None = None) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.name = name or config.family
        self.trained_steps = config.halt_max_steps
        self.stochastic = config.noise_scale > 0
        self.dtype: torch.dtype = getattr(torch, config.forward_dtype)
        size = config.hidden_size
        self.embed_tokens = _Table("embedding_weight", config.vocab_size, size)
        self.lm_head = CastLinear(size, config.vocab_size)
        self.q_head = CastLinear(size, 2, bias=True)
        if config.puzzles:
            self.puzzle_emb = _Table("weights", config.puzzles, config.puzzle_emb_ndim)
        if config.pos_encodings == "learned":
            self.embed_pos = _Table("embedding_weight", config.positions or 0, size)
        if config.pos_encodings == "absolute":
            self.register_buffer("absolute_pos_embedding", torch.zeros(config.positions or 0, size, dtype=self.dtype))
        self.L_level = self._level(config.L_layers)
        if config.family == "hrm":
            self.H_level = self._level(config.H_layers)
        if config.family != "eqr":
            self.register_buffer("H_init", torch.randn(size, dtype=self.dtype))
            self.register_buffer("L_init", torch.randn(size, dtype=self.dtype))
        layers = config.L_cycles * config.L_layers + (config.H_layers or config.L_layers)
        self.unit_cost = float(config.H_cycles * layers)

    def _level(self, layers: int) -> Level:
        c = self.config
        options: dict[str, Any] = {"heads": c.num_heads, "tokens": c.tokens, "eps": c.rms_norm_eps}
        return Level([Block(c.hidden_size, c.inner_size, **options) for _ in range(layers)])

    def encode(self, inputs: Any) -> Any:
        """Embeddings `(batch, prefix + length, hidden_size)`; for EqR also the key of each example.

        Args:
            inputs: tokens `(batch, length)`, integers; a pair (tokens, puzzle identifiers `(batch,)`); or a dict of
                these, as `inputs` and `puzzle_identifiers`. A table of one puzzle needs no identifiers.
        """
        tokens, puzzles = self._read(inputs)
        size = self.config.hidden_size
        embedded = F.embedding(tokens, self.embed_tokens.rows.to(self.dtype))
        if puzzles is not None:
            table = self.puzzle_emb.rows
            prefix = F.pad(table[puzzles], (0, self.config.prefix * size - table.shape[1])).to(self.dtype)
            embedded = torch.cat([prefix.unflatten(1, (-1, size)), embedded], dim=1)
        if self.config.pos_encodings == "learned":
            embedded = _HALF_POWER * (embedded + self.embed_pos.rows.to(self.dtype))
        if self.config.pos_encodings == "absolute":
            embedded = _HALF_POWER * (embedded + self.get_buffer("absolute_pos_embedding"))
        embedded = math.sqrt(size) * embedded
        return (embedded, fingerprints(tokens)) if self.config.family == "eqr" else embedded

    def _read(self, inputs: Any) -> tuple[Tensor, Tensor | None]:
        c = self.config
        if isinstance(inputs, dict):
            tokens, puzzles = inputs.get("inputs"), inputs.get("puzzle_identifiers")
        elif isinstance(inputs, tuple | list) and len(inputs) == 2:
            tokens, puzzles = inputs
        else:
            tokens, puzzles = inputs, None
        tokens = _whole(tokens, "inputs", "tokens (batch, length)", 2, c.vocab_size)
        length = c.tokens[0] if c.tokens else c.positions
        if c.pos_encodings == "rope2d" and c.tokens is None:
            length = c.prefix + math.prod(self._board(tokens.shape[1]))
        if length is not None and tokens.shape[1] != length - c.prefix:
            raise InputError(f"inputs have {tokens.shape[1]} tokens; this model was made for {length - c.prefix}")
        if not c.puzzles:
            return tokens, None
        if puzzles is None:
            if c.puzzles > 1:
                raise InputError(
                    f"this model knows {c.puzzles} puzzles by their embedding: give inputs as (tokens, puzzle "
                    "identifiers), identifiers (batch,)"
                )
            puzzles = tokens.new_zeros(len(tokens))
        puzzles = _whole(puzzles, "puzzle identifiers", f"numbers ({len(tokens)},)", 1, c.puzzles)
        if len(puzzles) != len(tokens):
            raise InputError(f"there are {len(puzzles)} puzzle identifiers for {len(tokens)} examples")
        return tokens, puzzles

    def _board(self, length: int) -> tuple[int, int]:
        if self.config.board_height and self.config.board_width:
            return self.config.board_height, self.config.board_width
        side = math.isqrt(length)
        if side * side != length:
            raise InputError(f"{length} tokens are no square; give board_height and board_width")
        return side, side

    def initial_state(self, context: Any, start: Start) -> Any:
        if self.config.family != "eqr":
            h, low = (self.get_buffer(key).expand_as(context).clone() for key in ("H_init", "L_init"))
            return start.like((h, low))
        embedded, keys = context
        for number in (self.seed, start.seed):
            keys = mixed(keys + number)
        if start.indices is not None:
            keys = mixed(keys + torch.tensor(start.indices, device=keys.device))
        stds = (self.config.H_init_std, self.config.L_init_std)
        states = tuple(_truncated(mixed(keys + 1 + i), embedded, std) for i, std in enumerate(stds))
        return start.like((*states, keys) if self.stochastic else states)

    def step(self, state: tuple[Tensor, ...], context: Any) -> tuple[Tensor, ...]:
        c = self.config
        high, low, *keys = state
        embedded = context[0] if c.family == "eqr" else context
        rotation = self._rotation(embedded)
        upper = self.H_level if c.family == "hrm" else self.L_level
        for _ in range(c.H_cycles):
            for _ in range(c.L_cycles):
                low, keys = self._update(self.L_level, low, high + embedded, rotation, keys)
            high, keys = self._update(upper, high, low, rotation, keys)
        return (high, low, *keys)

    def _update(
        self, level: Level, state: Tensor, injection: Tensor, rotation: Rotation | None, keys: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        new = level(state, injection, rotation)
        if self.config.family == "eqr":
            new = (1 - self.config.lambda_) * state + self.config.lambda_ * new
        if keys:
            new = new + normals(keys[0], state.shape[1:]).to(new.dtype) * self.config.noise_scale
            keys = [mixed(keys[0] + 1)]
        return new, keys

    def _rotation(self, embedded: Tensor) -> Rotation | None:
        c = self.config
        if c.tokens is not None or c.pos_encodings not in ("rope", "rope2d"):
            return None
        length, head = embedded.shape[1], c.hidden_size // c.num_heads
        if c.pos_encodings == "rope":
            return rotation_1d(length, head, c.rope_theta, embedded.device)
        return rotation_2d(*self._board(length), head, c.rope_theta, embedded.device)

    def decode(self, state: tuple[Tensor, ...], context: Any) -> Tensor:
        """Logits `(batch, length, vocab_size)`, in the dtype that the model computes in."""
        return self.lm_head(state[0][:, self.config.prefix :])

    def score(self, state: tuple[Tensor, ...], context: Any) -> Tensor:
        """`(batch,)` float32, from the Q-head at the first position: the logit of halting; for HRM, and for TRM with
        `no_ACT_continue` off, less that of going on. In training the repositories halt where it is above 0.
        """
        halt, go_on = self.q_head(state[0][:, 0]).float().unbind(-1)
        both = self.config.family == "hrm" or not self.config.no_ACT_continue
        return halt - go_on if both else halt


def _whole(values: Any, what: str, shape: str, dimensions: int, bound: int) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim != dimensions or values.is_floating_point():
        found = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{what} must be {shape}, integers, not {found}")
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < bound:
        raise InputError(f"{what} must be from 0 to {bound - 1}, not {int(values.min())} to {int(values.max())}")
    return values.long()


def _truncated(keys: Tensor, like: Tensor, std: float) -> Tensor:
    """A normal distribution cut off at two standard deviations, stretched so that `std` is its own, in the shape of
    `like`: the inverse of its distribution function, at uniform numbers.
    """
    uniform = 2 * uniforms(keys, like.shape[1:]) - 1
    stretch = std / _TRUNCATED_SD
    drawn = math.sqrt(2) * stretch * torch.erfinv(uniform * math.erf(math.sqrt(2)))
    return drawn.clamp(-2 * stretch, 2 * stretch).to(like.dtype)
