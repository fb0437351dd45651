"""A frozen feed-forward language model made to loop: some of its layers applied again and again, damped, untrained."""

from typing import Any

import torch
from torch import Tensor, nn

from homeostat.checks import is_number, is_whole
from homeostat.errors import ContractError
from homeostat.models.adapters.stand_in import Fixed, Recorder, Returned, StandIn, Teller, with_modules
from homeostat.models.adapters.token_inputs import bare, layer_arguments, read_tokens
from homeostat.models.contract import IteratedModel
from homeostat.models.starts import Start


class LoopedLayers(nn.Module, IteratedModel):
    """See `loop_layers`, which makes one."""

    token_states = True

    def __init__(self, model: nn.Module, path: str, first: int, last: int, damping: float) -> None:
        super().__init__()
        self.model = model
        self.path, self.first, self.last, self.damping = path, first, last, damping
        self.name = f"{type(model).__name__}, layers {first} to {last} looped"
        self.trained_steps = 1
        self.unit_cost = float(last - first + 1)
        self._in_tuple = self._layers_return_a_tuple()

    @property
    def layers(self) -> nn.ModuleList:
        return self.model.get_submodule(self.path)  # type: ignore[return-value]

    def encode(self, inputs: Any) -> dict[str, Any]:
        """What enters the first looped layer, `(batch, length, width)`, and what every looped layer is given beside."""
        tokens = read_tokens(inputs)
        trunk, _, own = self.path.rpartition(".")
        recorders, left_out = {}, {}
        for i, layer in enumerate(self.layers):
            if self.first <= i <= self.last:
                recorders[i] = Recorder(layer, self._in_tuple)
            elif i > self.last:
                left_out[i] = StandIn(layer, self._in_tuple)
        replaced = {f"{own}.{i}": module for i, module in (recorders | left_out).items()}
        # The trunk alone: its head is not needed here.
        with_modules(self.model.get_submodule(trunk), replaced)(**tokens, use_cache=False)
        found = recorders[self.first]
        entering = found.args[0] if found.args else found.kwargs["hidden_states"]
        return {
            "entering": entering,
            "layers": [layer_arguments(recorders[i], self.layers[i], tokens, causal=True) for i in recorders],
            "tokens": tokens,
        }

    def initial_state(self, context: dict[str, Any], start: Start) -> Any:
        entering = context["entering"]
        if self.damping == 1:
            return start.like(entering)
        begun = torch.zeros(len(entering), dtype=torch.bool, device=entering.device)
        return start.like({"hidden": entering, "begun": begun})

    def step(self, state: Any, context: dict[str, Any]) -> Any:
        context, old = bare(context), state if self.damping == 1 else state["hidden"]
        hidden = old
        for layer, arguments in zip(list(self.layers)[self.first : self.last + 1], context["layers"], strict=True):
            hidden = layer(hidden, **arguments)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if self.damping == 1:
            return hidden
        damped = torch.lerp(old, hidden, self.damping)
        return {
            "hidden": torch.where(state["begun"][:, None, None], damped, hidden),
            "begun": torch.ones_like(state["begun"]),
        }

    def decode(self, state: Any, context: dict[str, Any]) -> Tensor:
        """`(batch, vocabulary, length)` logits: the model's own forward from the state on."""
        hidden = state if self.damping == 1 else state["hidden"]
        layers = self.layers
        replaced: dict[str, nn.Module] = {}
        for i in range(self.last):
            replaced[f"{self.path}.{i}"] = StandIn(layers[i], self._in_tuple)
        replaced[f"{self.path}.{self.last}"] = Fixed(layers[self.last], hidden, self._in_tuple)
        out = with_modules(self.model, replaced)(**bare(context["tokens"]), use_cache=False)
        return out.logits.movedim(-1, 1)

    def _layers_return_a_tuple(self) -> bool:
        """Found by one token through the first layer: a tensor and a tuple of it are both indexed by what follows."""
        device = next(self.model.parameters()).device
        teller = with_modules(self.model, {f"{self.path}.0": Teller(self.layers[0])})
        try:
            with torch.no_grad():
                teller(torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
        except Returned as returned:
            return isinstance(returned.args[0], tuple)
        raise ContractError(f"the forward of {type(self.model).__name__} does not go through {self.path}.0")


def loop_layers(
    model: nn.Module, first: int, last: int, *, damping: float = 0.5, layers: str | None = None
) -> LoopedLayers:
    """Apply layers `first` to `last` of a decoder-only language model again and again; nothing is trained.

    The state is the hidden states `(batch, length, width)`. A run starts with what enters layer `first`. Its first step
    goes through the layers in full: **after one step the model is the one that was handed in**, exactly, and
    `trained_steps` is 1. Every further step goes part of the way, z + damping · (layers(z) − z). What comes before, in
    between (masks, positions) and behind (the layers after `last`, norm, head) is the model's own forward. The input is
    in the start alone, so that runs from noise or zeros have lost it.

    A step costs `unit_cost` = last − first + 1 layers; reading an answer costs the layers behind, and the head.

    Args:
        model: as `transformers` makes it, with a head (`…ForCausalLM`): `forward(input_ids, attention_mask,
            position_ids, use_cache)` gives `.logits`. It is not changed.
        first, last: counted from 0, both included.
        damping: share of the way that every step after the first one goes, above 0, at most 1.
        layers: path of the list of layers, such as `"model.layers"`, where the model has several such lists.

    Raises:
        ContractError: layers that are not there, an impossible damping, an encoder-decoder, or layers that take tensors
            of unknown meaning.

    Example:
        >>> import transformers
        >>> from homeostat.models import Own
        >>> _ = torch.manual_seed(0)
        >>> sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
        >>> own = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=2)).eval()
        >>> looped = loop_layers(own, 1, 2)
        >>> ids = torch.tensor([[3, 1, 4, 1, 5]])
        >>> with torch.no_grad():
        ...     context = looped.encode(ids)
        ...     state = looped.step(looped.initial_state(context, Own()), context)
        ...     bool((looped.decode(state, context) == own(ids).logits.movedim(-1, 1)).all())
        True
    """
    if not is_number(damping) or not 0 < damping <= 1:
        raise ContractError(f"damping must be a number above 0 and at most 1, not {damping!r}")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ContractError(f"{type(model).__name__} is an encoder and a decoder; loop_layers takes decoders alone")
    path = _find_layers(model) if layers is None else layers
    there = dict(model.named_modules()).get(path)
    if not isinstance(there, nn.ModuleList):
        raise ContractError(f"{type(model).__name__} has no list of layers at {path!r}; there are {_listed(model)}")
    if not (is_whole(first) and is_whole(last)) or not 0 <= first <= last < len(there):
        raise ContractError(
            f"first and last must be layers 0 to {len(there) - 1} of {path}, first not behind last, not {first!r} and "
            f"{last!r}"
        )
    return LoopedLayers(model, path, int(first), int(last), float(damping))


def _find_layers(model: nn.Module) -> str:
    """The outermost list of as many modules as the configuration has layers."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = getattr(config, "num_hidden_layers", None)
    found = [path for path, many in _lists(model) if many == count]
    outermost = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    if len(outermost) != 1:
        which = "none" if not outermost else " and ".join(outermost)
        raise ContractError(
            f"the layers of {type(model).__name__} are not plain to see: of its lists of modules, {which} "
            f"{'has' if len(outermost) < 2 else 'have'} the {count} of its configuration; say layers=, one of "
            f"{_listed(model)}"
        )
    return outermost[0]


def _lists(model: nn.Module) -> list[tuple[str, int]]:
    return [(path, len(module)) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]


def _listed(model: nn.Module) -> str:
    return ", ".join(f"{path} ({many})" for path, many in _lists(model)[:6]) or "none"
