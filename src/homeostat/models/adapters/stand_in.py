"""A model's own forward with some of its parts replaced, without touching the model.

Masks, rotary tables, scalings and heads differ from one architecture to the next, and change between versions of a
library. So an adapter does not write them again: it lets the model's own forward make them, on a copy that shares every
weight and differs in a few modules. The copy is made for one call; nothing of the user's model changes, not even for
that long.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

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


class Fixed(nn.Module):
    """Gives one tensor, whatever it is asked."""

    def __init__(self, value: Any, like: nn.Module) -> None:
        super().__init__()
        self.value, self.like = value, like

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.value

    def __getattr__(self, name: str) -> Any:
        return _or_of(self, name)


class PassOn(nn.Module):
    """Gives back what it is given first: a layer that is left out."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.like = like

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden

    def __getattr__(self, name: str) -> Any:
        return _or_of(self, name)


class Recorder(nn.Module):
    """Passes on what it is given first, and keeps what it was called with the first time."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.like = like
        self.args: tuple[Any, ...] | None = None
        self.kwargs: dict[str, Any] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.args is None:
            self.args, self.kwargs = args, kwargs
        return args[0] if args else kwargs["hidden_states"]

    def __getattr__(self, name: str) -> Any:
        return _or_of(self, name)


def _or_of(module: nn.Module, name: str) -> Any:
    """An attribute of the module, or of the one that it stands in for: some models ask a layer which mask it needs."""
    modules = vars(module).get("_modules", {})
    if name in modules:
        return modules[name]
    if "like" in modules and not name.startswith("__"):
        return getattr(modules["like"], name)
    raise AttributeError(name)
