"""A step whose answer for an example depends on the others is found out before rows leave, not obeyed in silence."""

import pytest
import torch

import homeostat as hs
from homeostat.errors import ContractError

GAIN = torch.tensor([0.1, 0.5, 0.95])[:, None]


@pytest.mark.parametrize("method", [hs.Picard(), hs.Anderson(), hs.Broyden()])
@pytest.mark.parametrize("size", [2, 3])
def test_a_shared_tensor_that_is_not_marked_and_has_the_size_of_the_batch(method, size):
    generator = torch.Generator().manual_seed(size)
    position, x = torch.randn(size, 8, generator=generator), torch.randn(size, size, 8, generator=generator)
    rate = torch.linspace(0.1, 0.95, size)

    def step(z, c):
        return torch.tanh(c["rate"][:, None, None] * z + c["x"] + c["position"])

    start = torch.zeros(size, size, 8)
    with pytest.raises(ContractError, match=r"another answer when it is alone.*homeostat\.Shared"):
        hs.solve(step, start, {"x": x, "rate": rate, "position": position}, method=method)
    marked = hs.solve(step, start, {"x": x, "rate": rate, "position": hs.Shared(position)}, method=method)
    assert marked.converged.all()


def test_a_step_that_looks_at_the_whole_batch():
    with pytest.raises(ContractError, match="another answer when it is alone"):
        hs.solve(lambda z, c: c * (z - 0.3 * z.mean(0)) + 1, torch.zeros(3, 4), GAIN)


def test_noise_that_is_not_context():
    with pytest.raises(ContractError, match="noise must come in as context"):
        hs.solve(lambda z, c: torch.where(c < 0.2, 1.0, c * z + torch.rand_like(z)), torch.zeros(3, 4), GAIN)


def test_a_batch_in_a_closure_is_named_where_the_step_fails():
    inputs = torch.randn(3, 4)
    with pytest.raises(ContractError, match="step changed state") as caught:
        hs.solve(lambda z, c: c * z + inputs, torch.zeros(3, 4), GAIN, method=hs.Picard())
    assert "not of a closure" in "".join(caught.value.__notes__)


def test_steps_that_do_as_they_should_are_left_alone():
    solution = hs.solve(lambda z, c: c * z + 1, torch.zeros(3, 4), GAIN, stop=hs.Stop(rtol=1e-6))
    assert solution.converged.all()
    torch.testing.assert_close(solution.state, (1 / (1 - GAIN)).expand(3, 4), rtol=1e-4, atol=0)
