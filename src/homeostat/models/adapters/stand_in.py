"""A model's own forward with some of its parts replaced, without touching the model.

Masks, rotary tables, scalings and heads differ from one architecture to the next, and change between versions of a
library. So an adapter does not write them again: it lets the model's own forward make them, on a copy that shares every
weight and differs in a few modules. The copy is made for one call; nothing of the user's model changes, not even for
that long.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from homeostat.errors import ContractError


def with_modules(model: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """The same model with other modules at some paths; all else, weights and buffers, is shared, not copied.

    Args:
        model: stays as it is.
        replacements: by path, as `named_modules` has them.

    Raises:
        ContractError: no module at a path, or a forward that somebody replaced: it would run the old modules.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> other = with_modules(model, {"1": nn.Tanh()})
        >>> type(other[1]).__name__, type(model[1]).__name__, other[0] is model[0]
        ('Tanh', 'ReLU', True)
    """
    copied = {"": _shallow(model, "")}
    for path, module in replacements.items():
        names, parent = path.split("."), copied[""]
        for depth, name in enumerate(names, start=1):
            if name not in parent._modules:
                raise ContractError(f"{type(model).__name__} has no module at {path}")
            here = ".".join(names[:depth])
            if depth == len(names):
                parent._modules[name] = module
            else:
                if here not in copied:
                    copied[here] = _shallow(model.get_submodule(here), here)
                    parent._modules[name] = copied[here]
                parent = copied[here]
    return copied[""]


def _shallow(module: nn.Module, path: str) -> nn.Module:
    if "forward" in vars(module):  # accelerate's device maps do so, and bind the function to the old module
        raise ContractError(
            f"the forward of {path or type(module).__name__} has been replaced (by a device map?), so that its parts "
            "cannot be taken apart; load the model onto one device"
        )
    copy = object.__new__(type(module))
    copy.__dict__.update(vars(module))
    copy.__dict__["_modules"] = dict(module._modules)
    return copy


class StandIn(nn.Module):
    """Stands where a layer stood, and has that layer's attributes: some models ask a layer which mask it needs.

    Args:
        layer: the one it stands in for.
        in_tuple: whether the layer returns a tuple with the hidden states in front, as older models do.
    """

    def __init__(self, layer: nn.Module, in_tuple: bool = False) -> None:
        super().__init__()
        self.layer, self.in_tuple = layer, in_tuple

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = self.answer(*args, **kwargs)
        return (hidden,) if self.in_tuple else hidden

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        """What the hidden states are behind it: what they were before it, as if it were left out."""
        return args[0] if args else kwargs["hidden_states"]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":
                raise
            return getattr(self.layer, name)


class Fixed(StandIn):
    """Gives one tensor, whatever it is asked."""

    def __init__(self, layer: nn.Module, value: Any, in_tuple: bool = False) -> None:
        super().__init__(layer, in_tuple)
        self.value = value

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


class Recorder(StandIn):
    """Keeps what it was called with, the first time."""

    def __init__(self, layer: nn.Module, in_tuple: bool = False) -> None:
        super().__init__(layer, in_tuple)
        self.args: tuple[Any, ...] | None = None
        self.kwargs: dict[str, Any] = {}

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        if self.args is None:
            self.args, self.kwargs = args, kwargs
        return super().answer(*args, **kwargs)


class Returned(Exception):
    """Carries what a layer returned out of a forward that need not go on."""


class Teller(StandIn):
    """Runs the layer, and ends the forward with what it returned."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise Returned(self.layer(*args, **kwargs))
