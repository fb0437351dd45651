"""Checkpoints of the repositories of TRM, HRM and EqR.

Names of the tensors, after the prefixes `_orig_mod.`, `module.`, `model.` and `inner.`, which compiling, data
parallelism, the loss head and the wrapper that halts put before them (`_orig_mod.model.inner.H_init`):

    embed_tokens.embedding_weight            (vocabulary, hidden)
    puzzle_emb.weights                       (puzzles, puzzle_emb_ndim), where there are puzzle embeddings
    embed_pos.embedding_weight               (prefix + length, hidden), where pos_encodings is learned
    absolute_pos_embedding                   (length, hidden), where it is absolute (TRM in the repository of EqR)
    H_init, L_init                           (hidden,), the start of every position; EqR keeps none
    L_level.layers.0.self_attn.qkv_proj.weight    (3 hidden, hidden)
    L_level.layers.0.self_attn.o_proj.weight      (hidden, hidden)
    L_level.layers.0.mlp_t.gate_up_proj.weight    (2 inner, prefix + length), in place of self_attn where mlp_t is set
    L_level.layers.0.mlp_t.down_proj.weight       (prefix + length, inner)
    L_level.layers.0.mlp.gate_up_proj.weight      (2 inner, hidden)
    L_level.layers.0.mlp.down_proj.weight         (hidden, inner)
    H_level.layers.…                         the same, for HRM alone
    lm_head.weight                           (vocabulary, hidden)
    q_head.weight, q_head.bias               (2, hidden) and (2,): logits of halting and of going on

TRM and HRM save this state dict as it is (`step_1234`). EqR saves a dict with it under `model`, its moving average
under `ema` (`shadow`), the configuration under `config`, and the state of training, of which nothing is read.

Sizes and layers come from the shapes. What shapes do not tell comes from `config`, from `all_config.yaml` beside the
file, or from the file itself, in this order.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from homeostat.errors import CheckpointError, InputError
from homeostat.models.adapters.foreign_weights import fit, read_file, tensors_of
from homeostat.models.adapters.reasoner import Reasoner, ReasonerConfig

_COMMON = ("H_cycles", "L_cycles", "num_heads", "pos_encodings", "rms_norm_eps", "rope_theta", "halt_max_steps")
_FACTS = {
    "trm": (*_COMMON, "forward_dtype", "puzzle_emb_len", "no_ACT_continue", "board_height", "board_width"),
    "hrm": (*_COMMON, "forward_dtype"),
    "eqr": (
        *(*_COMMON, "forward_dtype", "board_height", "board_width"),
        *("lambda_", "noise_scale", "H_init_std", "L_init_std"),
    ),
}
"""What shapes do not tell, by family."""

_BESIDE_WEIGHTS = (  # what EqR saves of the state of training, by the names that its files refer to
    *("models.eqr.ModelCarry", "models.eqr.LatentCarry", "models.trm.ModelCarry", "models.trm.LatentCarry"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"),
)
_CACHES = ("puzzle_emb.local_weights", "puzzle_emb.local_ids")
"""Of the batch that was trained on last; older files have them."""

Source = str | os.PathLike[str]


def load_trm(path: Source, **options: Any) -> Reasoner:
    """A checkpoint of TRM, with attention or with `mlp_t`, from its own repository or from that of EqR.

    A step is one segment: H_cycles * (L_cycles + 1) updates of L_layers layers each, which is its `unit_cost`. `score`
    is the logit of halting. Without puzzle embeddings there is no prefix; with them `puzzle_emb_len` must be known.

    Args:
        path: `step_…`, `.pth` or `.safetensors`.
        **options: see `load_reasoner`.

    Raises:
        CheckpointError: it cannot be read safely, does not fit, or something that shapes do not tell is not known.
        InputError: an option that there is not.
    """
    return load_reasoner("trm", path, **options)


def load_hrm(path: Source, **options: Any) -> Reasoner:
    """A checkpoint of HRM. As `load_trm`; the cost is H_cycles * (L_cycles * L_layers + H_layers) layers, and `score`
    is the logit of halting less that of going on.
    """
    return load_reasoner("hrm", path, **options)


def load_eqr(path: Source, **options: Any) -> Reasoner:
    """A checkpoint of EqR. As `load_trm`; it starts from truncated noise, drawn from `seed`, and with a `noise_scale`
    above 0 its steps draw noise too, and `stochastic` says so. `config={"noise_scale": 0}` turns that off.
    """
    return load_reasoner("eqr", path, **options)


def load_reasoner(
    family: Literal["trm", "hrm", "eqr"],
    path: Source,
    *,
    config: Mapping[str, Any] | Source | None = None,
    averaged: bool | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    name: str | None = None,
) -> Reasoner:
    """What `load_trm`, `load_hrm` and `load_eqr` do.

    Args:
        family: which of the three.
        path: the file with the weights.
        config: facts that shapes do not tell, by their names in the repository (`H_cycles`, `L_cycles`, `num_heads`,
            `pos_encodings`, …); or a YAML file with them, such as `all_config.yaml`. Facts given as a mapping go before
            those found beside or in the checkpoint.
        averaged: take the moving average of the weights; None: where the file has one, as the authors evaluate.
        seed: of EqR's start and noise.
        device: where to put it.
        name: what reports call it.

    Raises:
        CheckpointError, InputError: see `load_trm`.
    """
    path = Path(path)
    if averaged not in (None, True, False):
        raise InputError(f"averaged must be None, True or False, not {averaged!r}")
    given = _given(family, config)
    found = read_file(path, ignore=_BESIDE_WEIGHTS)
    tensors = _tensors(found, path, averaged)
    # A file that was named is all that is asked for; what is merely found comes after what was given.
    beside = path.parent / "all_config.yaml"
    sources = [_arch(found["config"], path)] if isinstance(found, Mapping) and "config" in found else []
    sources += [_arch(_yaml(beside), beside)] if beside.is_file() and not _complete(family, given) else []
    facts = {key: value for source in [*sources, given] for key, value in source.items()}
    built = _config(family, tensors, facts, path)
    model = Reasoner(built, seed=seed, name=name)
    fit(model, tensors, path, f"{family.upper()} with {built.L_layers} layers of {built.hidden_size} channels")
    return model.to(device).eval()


def _given(family: str, config: Mapping[str, Any] | Source | None) -> dict[str, Any]:
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        return _arch(_yaml(Path(config)), config)
    unknown = [key for key in config if key not in _FACTS[family]]
    if unknown:
        raise InputError(f"config has no {unknown[0]!r} for {family}; it takes {', '.join(_FACTS[family])}")
    return dict(config)


def _complete(family: str, given: Mapping[str, Any]) -> bool:
    return all(key in given for key in _FACTS[family])


def _yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        needed = "pip install 'homeostat[reasoners]'"
        raise InputError(f"{path} is YAML, which needs {needed}; or give config as a dict") from error
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not plain YAML ({str(error).splitlines()[0]})") from error


def _arch(found: Any, path: Any) -> dict[str, Any]:
    """The part of a configuration that describes the network."""
    arch = found.get("arch", found) if isinstance(found, Mapping) else None
    if not isinstance(arch, Mapping):
        raise CheckpointError(f"{path}: the configuration has no part `arch` with names and values")
    return {str(key): value for key, value in arch.items()}


def _tensors(found: Any, path: Path, averaged: bool | None) -> dict[str, Tensor]:
    whole = isinstance(found, Mapping) and isinstance(found.get("model"), Mapping)
    shadow = found.get("ema") if whole else None
    if isinstance(shadow, Mapping) and isinstance(shadow.get("shadow"), Mapping):
        shadow = shadow["shadow"]
    if averaged and not shadow:
        raise CheckpointError(f"{path} has no moving average of its weights (`ema`); give averaged=False")
    wrappers: dict[str, Any] = {"drop": ("_orig_mod", "module"), "start": ("model", "inner")}
    tensors = tensors_of(found["model"] if whole else found, path, **wrappers)
    if shadow and averaged is not False:  # it has the parameters; buffers are only in the state dict
        entries = {key: value for key, value in shadow.items() if isinstance(value, Tensor)}
        tensors |= tensors_of(entries, path, **wrappers)
    return {key: value for key, value in tensors.items() if key not in _CACHES}


def _config(family: Any, tensors: dict[str, Tensor], facts: dict[str, Any], path: Path) -> ReasonerConfig:
    """The configuration from shapes and facts, which must agree where both tell."""

    def shape(key: str, dimensions: int = 2) -> tuple[int, ...]:
        if key not in tensors or tensors[key].ndim != dimensions:
            have = "is missing" if key not in tensors else f"has {tensors[key].ndim} dimensions, not {dimensions}"
            raise CheckpointError(f"{path}: {key} {have}, so that this is no {family.upper()} checkpoint")
        return tuple(tensors[key].shape)

    has_upper = any(key.startswith("H_level.") for key in tensors)
    if has_upper != (family == "hrm"):
        other = "has H_level, and is of HRM: use load_hrm" if has_upper else "has no H_level, and is no HRM"
        raise CheckpointError(f"{path} {other}")
    first, told = "L_level.layers.0", {}
    told["vocab_size"], told["hidden_size"] = shape("embed_tokens.embedding_weight")
    told["L_layers"], told["H_layers"] = _layers(tensors, "L_level"), _layers(tensors, "H_level")
    told["inner_size"] = shape(f"{first}.mlp.down_proj.weight")[1]
    attention = f"{first}.mlp_t.down_proj.weight" not in tensors
    told["tokens"] = None if attention else shape(f"{first}.mlp_t.down_proj.weight")
    for key, kind in (("embed_pos.embedding_weight", "learned"), ("absolute_pos_embedding", "absolute")):
        if key in tensors:
            told["positions"], told["pos_encodings"] = shape(key)[0], kind
    if "puzzle_emb.weights" in tensors:
        told["puzzles"], told["puzzle_emb_ndim"] = shape("puzzle_emb.weights")
        shortest = -(-told["puzzle_emb_ndim"] // told["hidden_size"])
        if family == "trm":
            facts = {**facts, "puzzle_emb_len": _known(facts, "puzzle_emb_len", path)}
        told["prefix"] = (facts["puzzle_emb_len"] or shortest) if family == "trm" else shortest
    facts = {key: "none" if key == "pos_encodings" and value is None else value for key, value in facts.items()}
    for key in ("hidden_size", "vocab_size", "L_layers", "pos_encodings", *(["H_layers"] if has_upper else [])):
        if key in facts and key in told and facts[key] != told[key]:
            raise CheckpointError(f"{path}: {key} is {told[key]} by its tensors, {facts[key]!r} by its configuration")
    if facts.get("mlp_t", not attention) is attention:
        raise CheckpointError(f"{path}: mlp_t is {facts['mlp_t']} in its configuration, and its tensors say otherwise")
    needed = ["H_cycles", "L_cycles"]
    needed += ["num_heads"] if attention else []
    needed += ["pos_encodings"] if attention and "pos_encodings" not in told else []
    needed += ["lambda_", "noise_scale"] if family == "eqr" else []
    for key in needed:
        _known(facts, key, path)
    skipped = ("puzzle_emb_len", *(() if attention else ("num_heads",)))
    values = {key: facts[key] for key in _FACTS[family] if key in facts and key not in skipped}
    try:
        return ReasonerConfig.model_validate({"family": family, "pos_encodings": "none", **values, **told})
    except ValidationError as error:
        first_error = error.errors()[0]
        where = ".".join(str(part) for part in first_error["loc"]) or "the configuration"
        raise CheckpointError(f"{path}: {where}: {first_error['msg']}") from error


def _known(facts: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in facts:
        raise CheckpointError(
            f"{path}: {key} cannot be told from shapes; give config={{{key!r}: …}}, or all_config.yaml beside the file"
        )
    return facts[key]


def _layers(tensors: Mapping[str, Tensor], level: str) -> int:
    return len({key.split(".")[2] for key in tensors if key.startswith(f"{level}.layers.")})
