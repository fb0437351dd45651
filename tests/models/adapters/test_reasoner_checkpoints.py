"""Checkpoints of TRM, HRM and EqR in the layout of their repositories: a slow reference, round trips, bad files."""

import pickle
import sys
import types
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reasoner_reference as slow
import torch
from safetensors.torch import save_file
from torch import Tensor

from homeostat.errors import CheckpointError, InputError
from homeostat.models import Own
from homeostat.models.adapters import Reasoner, load_eqr, load_hrm, load_trm

LENGTH, VOCABULARY, SIZE, INNER, PUZZLES = 6, 5, 8, 12, 3
ATTENTION = {"num_heads": 2, "pos_encodings": "rope"}
FACTS: dict[str, Any] = {"H_cycles": 2, "L_cycles": 3, "forward_dtype": "float64", "halt_max_steps": 16}
PREFIX = "_orig_mod.model.inner."


def tensors(*, upper: int = 0, mlp_t: int = 0, puzzles: int = 0, positions: int = 0, starts: bool = True) -> Any:
    """A state dict as the repositories write it, with random weights."""
    draw = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=draw) / columns**0.5

    made = {
        "embed_tokens.embedding_weight": matrix(VOCABULARY, SIZE),
        "lm_head.weight": matrix(VOCABULARY, SIZE),
        "q_head.weight": matrix(2, SIZE),
        "q_head.bias": torch.randn(2, generator=draw),
    }
    if puzzles:
        made["puzzle_emb.weights"] = matrix(puzzles, SIZE)
    if positions:
        made["embed_pos.embedding_weight"] = matrix(positions, SIZE)
    if starts:
        made["H_init"], made["L_init"] = torch.randn(SIZE, generator=draw), torch.randn(SIZE, generator=draw)
    for name in ["L_level"] + (["H_level"] if upper else []):
        for layer in range(upper if name == "H_level" else 2):
            at = f"{name}.layers.{layer}"
            if mlp_t:
                made[f"{at}.mlp_t.gate_up_proj.weight"] = matrix(2 * INNER, mlp_t)
                made[f"{at}.mlp_t.down_proj.weight"] = matrix(mlp_t, INNER)
            else:
                made[f"{at}.self_attn.qkv_proj.weight"] = matrix(3 * SIZE, SIZE)
                made[f"{at}.self_attn.o_proj.weight"] = matrix(SIZE, SIZE)
            made[f"{at}.mlp.gate_up_proj.weight"] = matrix(2 * INNER, SIZE)
            made[f"{at}.mlp.down_proj.weight"] = matrix(SIZE, INNER)
    return made


def saved(path: Path, state: dict[str, Tensor], prefix: str = PREFIX) -> Path:
    torch.save({prefix + key: value for key, value in state.items()}, path)
    return path


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any], int]] = {
    "trm, attention": (load_trm, {"puzzles": PUZZLES}, {**ATTENTION, "puzzle_emb_len": 2}, 2),
    "trm, mixing positions": (load_trm, {"mlp_t": LENGTH}, {"pos_encodings": "none"}, 0),
    "trm, learned positions": (
        load_trm,
        {"puzzles": PUZZLES, "positions": LENGTH + 1},
        {"num_heads": 2, "puzzle_emb_len": 0},
        1,
    ),
    "hrm": (load_hrm, {"puzzles": PUZZLES, "upper": 1}, ATTENTION, 1),
    "eqr": (load_eqr, {"starts": False}, {**ATTENTION, "lambda_": 0.7, "noise_scale": 0.0}, 0),
    "eqr, board": (
        load_eqr,
        {"starts": False},
        {
            "num_heads": 2,
            "pos_encodings": "rope2d",
            "board_height": 2,
            "board_width": 3,
            "lambda_": 0.7,
            "noise_scale": 0.0,
        },
        0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_network_is_that_of_a_slow_reference(case: str, tmp_path: Path) -> None:
    load, made, facts, prefix = CASES[case]
    state_dict = tensors(**made)
    facts = {**FACTS, **facts}
    model = load(saved(tmp_path / "step_10", state_dict), config=facts)
    weights = {key: value.double().numpy() for key, value in state_dict.items()}
    tokens, puzzles = torch.tensor([[0, 1, 2, 3, 4, 0], [4, 4, 3, 1, 1, 2]]), torch.tensor([2, 0])
    with torch.no_grad():
        context = model.encode((tokens, puzzles))
        start = model.initial_state(context, Own())
        state = model.step(model.step(start, context), context)
        logits, score = model.decode(state, context), model.score(state, context)
    assert logits.shape == (2, LENGTH, VOCABULARY)
    for row in range(2):
        x = slow.embedded(weights, tokens[row].numpy(), int(puzzles[row]), prefix, facts)
        high, low = (leaf[row].numpy() for leaf in start)
        if "H_init" in weights:
            assert np.array_equal(high, np.broadcast_to(weights["H_init"], high.shape))
            assert np.array_equal(low, np.broadcast_to(weights["L_init"], low.shape))
        for _ in range(2):
            high, low = slow.segment(weights, high, low, x, {"pos_encodings": "none", **facts})
        expected = (high @ weights["lm_head.weight"].T)[prefix:]
        np.testing.assert_allclose(logits[row].numpy(), expected, rtol=0, atol=2e-5)  # norms are taken in float32
        halt, go_on = weights["q_head.weight"] @ high[0] + weights["q_head.bias"]
        np.testing.assert_allclose(score[row], halt - (go_on if case == "hrm" else 0), atol=2e-5)
    upper = 1 if case == "hrm" else 2
    assert model.unit_cost == 2 * (3 * 2 + upper)
    assert (model.trained_steps, model.stochastic) == (16, False)


@pytest.mark.parametrize("prefix", ["", "inner.", "model.inner.", "_orig_mod.model.inner.", "model._orig_mod.inner."])
def test_every_prefix_that_training_leaves(prefix: str, tmp_path: Path) -> None:
    made = tensors(mlp_t=LENGTH)
    model = load_trm(saved(tmp_path / "step_10", made, prefix), config=FACTS)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == {
        key: tuple(value.shape) for key, value in made.items()
    }
    assert torch.equal(model.L_level.layers[1].mlp.down_proj.weight, made["L_level.layers.1.mlp.down_proj.weight"])


def test_a_round_trip(tmp_path: Path) -> None:
    first = load_hrm(saved(tmp_path / "step_10", tensors(upper=1)), config={**FACTS, **ATTENTION})
    save_file({PREFIX + key: value for key, value in first.state_dict().items()}, tmp_path / "again.safetensors")
    second = load_hrm(tmp_path / "again.safetensors", config={**FACTS, **ATTENTION})
    tokens = torch.randint(VOCABULARY, (2, LENGTH))
    with torch.no_grad():
        outputs = [run(model, tokens, 2) for model in (first, second)]
    assert torch.equal(*outputs)


def run(model: Reasoner, tokens: Tensor, steps: int, **start: Any) -> Tensor:
    with torch.no_grad():
        context = model.encode(tokens)
        state = model.initial_state(context, Own(**start))
        for _ in range(steps):
            state = model.step(state, context)
        return model.decode(state, context)


def test_facts_beside_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "step_10", tensors())
    with pytest.raises(
        CheckpointError, match=r"step_10: H_cycles cannot be told from shapes; give config=\{'H_cycles'"
    ):
        load_trm(path)
    arch = "arch:\n  name: trm@M\n  H_cycles: 2\n  L_cycles: 4\n  num_heads: 2\n  pos_encodings: rope\n  expansion: 4\n"
    (tmp_path / "all_config.yaml").write_text(arch + "  halt_max_steps: 16\nlr: 0.1\n")
    model = load_trm(path, config={"H_cycles": 3})
    assert (model.config.H_cycles, model.config.L_cycles, model.trained_steps) == (3, 4, 16)
    assert model.dtype == torch.bfloat16  # as the repositories compute where nothing else is said
    elsewhere = tmp_path / "other.yaml"
    elsewhere.write_text(arch.replace("L_cycles: 4", "L_cycles: 5"))
    assert load_trm(path, config=elsewhere).config.L_cycles == 5
    (tmp_path / "all_config.yaml").write_text(arch + "  hidden_size: 512\n")
    with pytest.raises(CheckpointError, match="hidden_size is 8 by its tensors, 512 by its configuration"):
        load_trm(path)
    (tmp_path / "all_config.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(CheckpointError, match="is not plain YAML"):
        load_trm(path)


def whole_eqr(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What EqR saves: weights, moving average, configuration, and the state of training with objects of its own."""
    module = types.ModuleType("models.eqr")
    carry = make_dataclass("ModelCarry", ["steps"])
    carry.__module__, module.ModelCarry = "models.eqr", carry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.eqr", module)
    made = tensors(starts=False)
    average = {key: 2 * value for key, value in made.items()}
    torch.save(
        {
            "step": 7,
            "model": {PREFIX + key: value for key, value in made.items()},
            "ema": {"mu": 0.999, "shadow": {"model.inner." + key: value for key, value in average.items()}},
            "config": {"arch": {**FACTS, **ATTENTION, "lambda_": 0.9, "noise_scale": 0.1, "loss": {"name": "l"}}},
            "carry": carry(torch.ones(3)),
            "numpy": np.random.RandomState(0).get_state(),
            "optimizers": [{"state": {0: {"step": torch.ones(())}}, "param_groups": [{"lr": 1e-4}]}],
        },
        path,
    )
    return average


def test_a_whole_training_state_of_eqr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "eqr.pth"
    average = whole_eqr(path, monkeypatch)
    model = load_eqr(path)
    assert torch.equal(model.q_head.bias, average["q_head.bias"])
    assert (model.config.lambda_, model.config.noise_scale, model.stochastic) == (0.9, 0.1, True)
    plain = load_eqr(path, averaged=False, config={"noise_scale": 0})
    assert torch.equal(plain.q_head.bias, average["q_head.bias"] / 2)
    assert not plain.stochastic
    with pytest.raises(CheckpointError, match=r"has no moving average of its weights \(`ema`\)"):
        load_trm(saved(tmp_path / "step_1", tensors()), config={**FACTS, **ATTENTION}, averaged=True)


class Hostile:
    """Unpickled by the ordinary way, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (exec, (f"open({str(self.path)!r}, 'w').write('run')",))


def test_nothing_in_a_hostile_file_is_run(tmp_path: Path) -> None:
    for number, obj in enumerate(({"H_init": Hostile(tmp_path / "run")}, Hostile(tmp_path / "run"))):
        torch.save(obj, tmp_path / f"{number}.pth")
        (tmp_path / f"{number}.pkl").write_bytes(pickle.dumps(obj))
        for path in (tmp_path / f"{number}.pth", tmp_path / f"{number}.pkl"):
            with pytest.raises(CheckpointError, match="nothing in it was run") as caught:
                load_trm(path)
            assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*nothing: No such file"):
        load_trm(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="is a folder: give the checkpoint file in it"):
        load_trm(tmp_path)
    whole = saved(tmp_path / "whole", tensors()).read_bytes()
    for size in (0, 10, 1000, len(whole) - 40):
        (tmp_path / "half").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="half"):
            load_trm(tmp_path / "half")
    (tmp_path / "half.safetensors").write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="is truncated or is not a safetensors file"):
        load_trm(tmp_path / "half.safetensors")
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(CheckpointError, match="holds no state dict but a list"):
        load_trm(tmp_path / "list")
    torch.save({"epoch": 3}, tmp_path / "epoch")
    with pytest.raises(CheckpointError, match="epoch is a int, not a tensor"):
        load_trm(tmp_path / "epoch")


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    facts = {**FACTS, **ATTENTION}

    def load_changed(**changes: Tensor | None) -> None:
        made = {**tensors(), **{key.replace("__", "."): value for key, value in changes.items()}}
        load_trm(saved(tmp_path / "x", {k: v for k, v in made.items() if v is not None}), config=facts)

    with pytest.raises(CheckpointError, match=r"missing: L_init \(8,\); unexpected: z_init \(8,\)"):
        load_changed(L_init=None, z_init=torch.ones(SIZE))
    with pytest.raises(CheckpointError, match=r"wrong shape: lm_head.weight is \(5, 9\), not \(5, 8\)"):
        load_changed(lm_head__weight=torch.ones(VOCABULARY, 9))
    with pytest.raises(CheckpointError, match="not finite: H_init"):
        load_changed(H_init=torch.full((SIZE,), float("nan")))
    with pytest.raises(CheckpointError, match="not floating: H_init"):
        load_changed(H_init=torch.ones(SIZE, dtype=torch.long))
    with pytest.raises(CheckpointError, match="has H_level, and is of HRM: use load_hrm"):
        load_trm(saved(tmp_path / "h", tensors(upper=1)), config=facts)
    with pytest.raises(CheckpointError, match="has no H_level, and is no HRM"):
        load_hrm(saved(tmp_path / "t", tensors()), config=facts)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.embedding_weight is missing, so that this is no TRM"):
        load_changed(embed_tokens__embedding_weight=None)
    twice = {"model.H_init": torch.ones(1), "_orig_mod.model.H_init": torch.ones(1)}
    with pytest.raises(CheckpointError, match="has H_init twice, under different prefixes"):
        load_trm(saved(tmp_path / "twice", twice, ""))


def test_facts_that_make_no_sense(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", tensors())
    with pytest.raises(InputError, match="config has no 'H_cycle' for trm; it takes H_cycles, L_cycles"):
        load_trm(path, config={"H_cycle": 3})
    with pytest.raises(CheckpointError, match="num_heads 3 does not divide hidden_size 8"):
        load_trm(path, config={**FACTS, **ATTENTION, "num_heads": 3})
    with pytest.raises(CheckpointError, match="H_cycles: Input should be greater than or equal to 1"):
        load_trm(path, config={**FACTS, **ATTENTION, "H_cycles": 0})
    with pytest.raises(CheckpointError, match="puzzle_emb_len cannot be told from shapes"):
        load_trm(saved(tmp_path / "p", tensors(puzzles=2)), config={**FACTS, **ATTENTION})
    eqr = saved(tmp_path / "e", tensors(starts=False))
    with pytest.raises(CheckpointError, match="lambda_ cannot be told from shapes"):
        load_eqr(eqr, config={**FACTS, **ATTENTION})


def test_inputs_that_make_no_sense(tmp_path: Path) -> None:
    model = load_trm(
        saved(tmp_path / "x", tensors(puzzles=PUZZLES, mlp_t=LENGTH + 1)), config={**FACTS, "puzzle_emb_len": 1}
    )
    ids = torch.zeros(2, dtype=torch.long)
    with pytest.raises(InputError, match="inputs have 7 tokens; this model was made for 6"):
        model.encode((torch.zeros(2, 7, dtype=torch.long), ids))
    with pytest.raises(InputError, match="inputs must be from 0 to 4, not 5 to 5"):
        model.encode((torch.full((2, LENGTH), 5), ids))
    with pytest.raises(InputError, match=r"inputs must be tokens \(batch, length\), integers, not torch.float32"):
        model.encode((torch.zeros(2, LENGTH), ids))
    with pytest.raises(InputError, match="this model knows 3 puzzles by their embedding: give inputs as"):
        model.encode(torch.zeros(2, LENGTH, dtype=torch.long))
    with pytest.raises(InputError, match="there are 1 puzzle identifiers for 2 examples"):
        model.encode((torch.zeros(2, LENGTH, dtype=torch.long), ids[:1]))
