"""Alignment of runs from other starts, on maps whose attractors are known."""

import pytest
import torch
from torch import Tensor

import homeostat as hs
from homeostat.probes.results import Alignment, Audit


class SignJudge:
    def answers(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).long()

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.answers(outputs) == targets).all(1)


def audited(model: hs.IteratedModel, x: Tensor, steps: int = 80, **options: object) -> Audit:
    examples = [(x, (x > 0).long())]
    return hs.audit(model, examples, steps=[steps], judge=SignJudge(), **options)  # type: ignore[arg-type]


def by_start(audit: Audit) -> dict[str, Alignment]:
    return {alignment.start: alignment for alignment in audit.difficulties[0].alignments}


def inputs(rows: int = 40) -> Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(1)).double()


def test_a_path_independent_map_is_aligned_from_every_start() -> None:
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.ones_like(x),
        step=lambda z, x: 0.5 * z + 0.5 * x,
        decode=lambda z, x: z,
    )
    x = inputs()
    found = by_start(audited(model, x))
    assert set(found) == {"zeros", "noise", "swapped"}
    null = torch.nn.functional.cosine_similarity(x, x.roll(1, 0)).mean()
    for alignment in found.values():
        assert alignment.cosine.value == pytest.approx(1, abs=1e-12)
        assert alignment.distance < 1e-12
        assert alignment.agreement is not None
        assert alignment.exact is not None
        assert alignment.agreement.value == alignment.exact.value == 1
        assert alignment.null.value == pytest.approx(float(null)), "between different examples"
        assert alignment.null.count == 40
        assert alignment.failed == 0


def test_two_attractors_are_seen_from_swapped_and_noise_starts() -> None:
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: 0.1 * x,
        step=lambda z, x: torch.tanh(3 * z),  # ends at plus or minus one, whichever is nearer
        decode=lambda z, x: z,
    )
    x = inputs(40)[:, :1].repeat(1, 5)
    x = torch.where(torch.arange(40)[:, None] % 2 == 0, x.abs(), -x.abs())  # neighbours disagree
    found = by_start(audited(model, x))
    assert found["swapped"].cosine.value == pytest.approx(-1)
    assert found["swapped"].null.value == pytest.approx(-1)
    assert found["swapped"].agreement is not None
    assert found["swapped"].agreement.value == 0
    assert abs(found["noise"].cosine.value) < 0.5
    assert found["noise"].agreement is not None
    assert found["noise"].agreement.value < 0.3
    # From zero it stays at zero, which points nowhere.
    assert found["zeros"].cosine.value == 0


def test_answers_can_agree_where_states_do_not() -> None:
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: torch.cat([x[:, :2], z[:, 2:]], dim=1),  # keeps whatever else was there
        decode=lambda z, x: z[:, :2],
    )
    x = inputs()
    found = by_start(hs.audit(model, [(x, (x[:, :2] > 0).long())], steps=[5], judge=SignJudge()))
    assert found["noise"].cosine.value < 0.9
    assert found["noise"].agreement is not None
    assert found["noise"].agreement.value == 1


def test_zeros_are_left_out_where_the_model_starts_from_them() -> None:
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.zeros_like(x),
        step=lambda z, x: 0.5 * (z + x),
        decode=lambda z, x: z,
    )
    assert set(by_start(audited(model, inputs()))) == {"noise", "swapped"}


def test_a_model_that_ignores_the_start_is_told_not_praised() -> None:
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x, start: torch.ones_like(x),
        step=lambda z, x: torch.tanh(3 * z),
        decode=lambda z, x: z,
    )
    audit = audited(model, inputs())
    assert set(by_start(audit)) == {"swapped"}
    assert any("noise start not measured" in note for note in audit.difficulties[0].notes)
    assert "noise start not measured" in repr(audit)


def test_without_alignment_nothing_is_run_again() -> None:
    calls = 0

    def step(z: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * (z + x)

    model = hs.from_functions(encode=lambda x: x, initial_state=torch.zeros_like, step=step, decode=lambda z, x: z)
    hs.audit(model, [(inputs(), None)], steps=[10], alignment=False)  # its first use, which is looked at
    calls = 0
    audit = hs.audit(model, [(inputs(), None)], steps=[10], alignment=False)
    assert audit.difficulties[0].alignments == ()
    assert calls == 10


def test_noise_depends_on_the_seed_alone() -> None:
    x = inputs()

    def distance(**options: object) -> list[float]:
        return [e.alignment["noise"] for e in audited(model, x + 1, steps=3, **options).difficulties[0].examples]

    model = hs.from_functions(
        encode=lambda x: x, initial_state=lambda x: x, step=lambda z, x: torch.tanh(3 * z), decode=lambda z, x: z
    )
    assert distance(seed=1) == distance(seed=1)
    assert distance(seed=1) != distance(seed=2)
    assert distance(seed=1) != distance(seed=1, noise_scale=0.01)
