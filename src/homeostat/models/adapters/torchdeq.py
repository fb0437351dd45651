"""Models that solve by torchdeq, `z_out, info = deq(f, z0)`, as iterated models.

torchdeq itself is not needed for this: what a model iterates is its own `f`. A step is one application of `f` to every
tensor of the state; it costs one evaluation of the cell, which is `unit_cost` 1 unless told otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from homeostat.checks import plain_number
from homeostat.errors import ContractError
from homeostat.models.contract import IteratedModel, check_attributes
from homeostat.models.starts import Start


class TorchDEQModel(nn.Module, IteratedModel):
    """What `from_torchdeq` returns: the functions of the contract, and the modules that they use."""

    def __init__(
        self,
        functions: dict[str, Callable[..., Any]],
        modules: Sequence[nn.Module],
        name: str,
        trained_steps: int | None,
        unit_cost: float,
    ) -> None:
        super().__init__()
        self._functions = functions
        self.parts = nn.ModuleList(modules)
        self.name, self.trained_steps, self.unit_cost = name, trained_steps, unit_cost

    def encode(self, inputs: Any) -> Any:
        """The context; normalised weights are computed anew before, as torchdeq's `reset_deq` does.

        Raises:
            ContractError: a dropout of torchdeq's in training mode: its mask is kept on the module, for the rows of
                one batch, and rows leave the batch here.
        """
        for name, module in self.parts.named_modules():
            if hasattr(module, "_deq_norm"):
                module._deq_norm(module)  # pyright: ignore[reportCallIssue]
            if module.training and hasattr(module, "reset_mask") and getattr(module, "dropout", 0) > 0:
                raise ContractError(
                    f"{type(module).__name__} {name!r} is in training mode, and keeps one mask for a whole batch, "
                    "whose rows leave here as they finish: call model.eval(), or put a mask of "
                    "hs.nn.VariationalDropout into the context"
                )
        return self._functions["encode"](inputs)

    def initial_state(self, context: Any, start: Start) -> Any:
        own = self._functions["z0"](context)
        return start.like(own if isinstance(own, Tensor) else tuple(own))

    def step(self, state: Any, context: Any) -> Any:
        tensors = [state] if isinstance(state, Tensor) else state
        cell = self._functions.get("cell")
        after = self._functions["make_f"](context)(*tensors) if cell is None else cell(*tensors, context)
        if isinstance(state, Tensor):
            return after
        return (after,) if isinstance(after, Tensor) else tuple(after)

    def decode(self, state: Any, context: Any) -> Any:
        return self._functions["decode"](state if isinstance(state, Tensor) else list(state), context)


def from_torchdeq(
    *,
    encode: Callable[[Any], Any],
    z0: Callable[[Any], Any],
    decode: Callable[[Any, Any], Any],
    cell: Callable[..., Any] | None = None,
    make_f: Callable[[Any], Callable[..., Any]] | None = None,
    modules: nn.Module | Sequence[nn.Module] = (),
    name: str = "deq",
    trained_steps: int | None = None,
    unit_cost: float = 1.0,
) -> TorchDEQModel:
    """A model around any call `deq(f, z0)`, from the four things that surround it.

    Where `forward` reads `x = encoder(inputs); z_out, info = deq(lambda z: cell(z, x), z0); return decoder(z_out[-1])`,
    `x` is the context. It travels as an argument here, and not in a closure, because rows that are finished leave the
    batch together with theirs: whatever `f` closes over that is per example belongs into it.

    Args:
        encode: `inputs -> context`, a tensor or a nest of tensors, batch first; what is not per example in it is
            marked `hs.Shared`.
        z0: `context -> state`, a tensor or a list of tensors, batch first.
        decode: `(state, context) -> outputs`; of several tensors the state is a list, as in `z_out[-1]`.
        cell: `(*tensors, context) -> tensors`, so that `f` is `lambda *z: cell(*z, context)`; or give `make_f`.
        make_f: `context -> f`, the closure as it is made in `forward`; called once a step, with the rows of then.
        modules: the modules that hold the weights, if the functions above are not modules themselves: for evaluation
            mode, device and reset.
        name, trained_steps, unit_cost: see `IteratedModel`. The horizon of a layer of torchdeq is its `f_max_iter` and
            the steps of `grad` behind it.

    Normalised weights (`apply_norm`) are computed anew in `encode`, so that `reset_deq` or `reset_norm` need not be
    called. Under `torch.no_grad` that leaves weights without a graph, which the reset of the next forward pass in
    training replaces. Variational dropout does nothing in evaluation and is refused in training.

    Raises:
        ContractError: a function that cannot be called, both or none of `cell` and `make_f`.

    Example:
        >>> import torch, homeostat as hs
        >>> encoder, cell, decoder = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        >>> model = from_torchdeq(
        ...     encode=encoder,
        ...     make_f=lambda x: lambda z: torch.tanh(0.5 * cell(z) + x),
        ...     z0=torch.zeros_like,
        ...     decode=lambda z, x: decoder(z),
        ...     modules=[cell, decoder],
        ...     trained_steps=40,
        ... )
        >>> context = model.encode(torch.ones(4, 3))
        >>> solution = hs.solve(model.step, model.initial_state(context, hs.models.Own()), context)
        >>> model.decode(solution.state, context).shape
        torch.Size([4, 2])
    """
    if (cell is None) == (make_f is None):
        raise ContractError("give cell or make_f, and not both: make_f(context) returns the f of deq(f, z0)")
    functions: dict[str, Any] = {"encode": encode, "z0": z0, "decode": decode}
    functions |= {"cell": cell} if make_f is None else {"make_f": make_f}
    for key, function in functions.items():
        if not callable(function):
            raise ContractError(f"{key} must be a function or a module, not {function!r}")
    check_attributes(trained_steps, unit_cost)
    given = [modules] if isinstance(modules, nn.Module) else list(modules)
    given += [x for x in functions.values() if isinstance(x, nn.Module) and x not in given]
    return TorchDEQModel(functions, given, name, plain_number(trained_steps), plain_number(unit_cost))
