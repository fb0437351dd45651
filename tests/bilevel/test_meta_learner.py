"""Meta-learning against closed forms, finite differences and loops written by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.bilevel import GradientDescent, MetaLearner
from homeostat.bilevel.per_task import PerTask, mapped
from homeostat.errors import ContractError, ConvergenceWarning
from homeostat.models import Own

PULL = 0.7


def data(tasks: int = 3, samples: int = 6, features: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, q = torch.randn(2, tasks, samples, features, generator=generator, dtype=torch.float64)
    slope = torch.randn(tasks, features, 1, generator=generator, dtype=torch.float64)
    return x, x @ slope + 0.3, q, q @ slope + 0.3


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()


class Unknown(nn.Module):
    """The same network as `small`, in a form that has no batched products."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def outer(learner: MetaLearner, solution: hs.Solution, q: Tensor, answers: Tensor) -> Tensor:
    return (learner.predict(solution.state, q) - answers).square().mean()


def exact_linear(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Minimisers `(tasks, 3)` of mean squared error + PULL / 2 |phi - theta|^2 of a linear map with a bias."""
    design = torch.cat([x, torch.ones_like(x[..., :1])], -1)
    n = x.shape[1]
    hessian = 2 / n * design.mT @ design + PULL * torch.eye(3, dtype=torch.float64)
    right = 2 / n * design.mT @ y + PULL * theta[:, None]
    return torch.linalg.solve(hessian, right)[..., 0]


def test_implicit_maml_of_a_linear_model_is_the_closed_form() -> None:
    x, y, q, answers = data()
    module = nn.Linear(2, 1).double()
    learner = MetaLearner(module, regulariser=PULL, inner=GradientDescent(0.2))
    tight = hs.Stop(rtol=1e-13, max_steps=5000)
    gradient = hs.Implicit(method=hs.GMRES(), stop=hs.Stop(rtol=1e-13, max_steps=50))
    solution = learner.adapt(x, y, stop=tight, gradient=gradient)
    outer(learner, solution, q, answers).backward()

    theta = torch.cat([module.weight.detach().flatten(), module.bias.detach()]).requires_grad_()
    phi = exact_linear(theta, x, y)
    torch.testing.assert_close(learner.named(solution.state)["weight"][:, 0], phi[:, :2], rtol=0, atol=1e-10)
    design = torch.cat([q, torch.ones_like(q[..., :1])], -1)
    (design @ phi[..., None] - answers).square().mean().backward()
    assert theta.grad is not None
    found = torch.cat([module.weight.grad.flatten(), module.bias.grad])  # type: ignore[union-attr]
    torch.testing.assert_close(found, theta.grad, rtol=0, atol=1e-10)


def test_implicit_maml_of_a_network_agrees_with_finite_differences() -> None:
    x, y, q, answers = data()
    learner = MetaLearner(small(), regulariser=2.0, inner=GradientDescent(0.2))

    def value() -> Tensor:
        stop = hs.Stop(rtol=1e-12, max_steps=3000)
        gradient = hs.Implicit(method=hs.GMRES(), stop=hs.Stop(rtol=1e-11, max_steps=100))
        return outer(learner, learner.adapt(x, y, stop=stop, gradient=gradient), q, answers)

    value().backward()
    weight = learner.module.get_parameter("0.weight")
    assert weight.grad is not None
    for place in ((0, 0), (3, 1)):
        ends = []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                weight[place] += shift
                ends.append(float(value()))
        with torch.no_grad():
            weight[place] += 1e-5
        assert float(weight.grad[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("regulariser", [0.0, 0.5])
def test_maml_is_the_gradient_of_the_steps_written_out(regulariser: float) -> None:
    x, y, q, answers = data()
    learner = MetaLearner(small(), regulariser=regulariser, inner=GradientDescent(0.1))
    solution = learner.adapt(x, y, stop=hs.Stop(rtol=0, max_steps=4), gradient=hs.Unrolled())
    outer(learner, solution, q, answers).backward()

    reference = small()
    theta = list(reference.parameters())

    def run(phi: list[Tensor], at: Tensor) -> Tensor:
        return torch.tanh(at @ phi[0].T + phi[1]) @ phi[2].T + phi[3]

    losses = []
    for task in range(len(x)):
        phi = list(theta)
        for _ in range(4):
            loss = (run(phi, x[task]) - y[task]).square().mean()
            loss = loss + regulariser / 2 * sum((p - t).square().sum() for p, t in zip(phi, theta, strict=True))
            phi = [p - 0.1 * g for p, g in zip(phi, torch.autograd.grad(loss, phi, create_graph=True), strict=True)]
        losses.append((run(phi, q[task]) - answers[task]).square().mean())
    torch.stack(losses).mean().backward()
    for mine, theirs in zip(learner.parameters(), theta, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("inner", [GradientDescent(), GradientDescent(0.1)])
def test_a_task_alone_learns_what_it_learns_in_a_batch(inner: GradientDescent) -> None:
    x, y, _, _ = data(tasks=5)
    learner = MetaLearner(small(), regulariser=PULL, inner=inner)
    stop = hs.Stop(rtol=1e-5, max_steps=400)
    with torch.no_grad():
        together = learner.adapt(x, y, stop=stop, gradient=hs.Implicit())
        assert len(set(together.steps.tolist())) > 1  # each stops by itself
        for task in range(5):
            alone = learner.adapt(x[task : task + 1], y[task : task + 1], stop=stop, gradient=hs.Implicit())
            assert alone.steps == together.steps[task]
            for name, value in learner.named(alone.state).items():
                torch.testing.assert_close(value[0], learner.named(together.state)[name][task], rtol=1e-9, atol=1e-12)


def test_batched_products_agree_with_vmap() -> None:
    x, y, q, answers = data()
    gradients = []
    for module in (small(), Unknown(small())):
        learner = MetaLearner(module, regulariser=PULL)
        solution = learner.adapt(x, y, stop=hs.Stop(rtol=0, max_steps=5), gradient=hs.Unrolled())
        outer(learner, solution, q, answers).backward()
        gradients.append([p.grad for p in module.parameters()])
    for fast, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(4, 3),
        nn.Sequential(nn.Linear(4, 3, bias=False), nn.GELU(), nn.Linear(3, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.LayerNorm(3)),
        nn.Conv1d(1, 2, 2),
    ],
)
@pytest.mark.parametrize("shape", [(5, 7, 4), (5, 2, 7, 4)])
def test_every_module_gives_what_it_gives_task_by_task(module: nn.Module, shape: tuple[int, ...]) -> None:
    if isinstance(module, nn.Conv1d):
        shape = (*shape[:2], 1, 4)
    elif isinstance(module, nn.Sequential) and isinstance(module[0], nn.Flatten):
        shape = (5, 7, 4)
    torch.manual_seed(0)
    parameters = {name: torch.randn(5, *p.shape) for name, p in module.named_parameters()}
    inputs = torch.randn(shape)
    together = PerTask(module)(parameters, inputs)
    for task in range(5):
        own = {name: p[task] for name, p in parameters.items()}
        torch.testing.assert_close(together[task], torch.func.functional_call(module, own, (inputs[task],)))
    torch.testing.assert_close(together, mapped(module, parameters, inputs))


def test_hooks_are_not_passed_over() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_forward_hook(lambda _, __, out: 0 * out)
    parameters = {name: torch.randn(3, *p.shape) for name, p in module.named_parameters()}
    assert bool((PerTask(module)(parameters, torch.randn(3, 4, 2)) == 0).all())


def test_a_loss_of_ones_own_and_classes() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 2)
    labels = (x[..., 0] > 0).long()
    learner = MetaLearner(nn.Linear(2, 2), loss=F.cross_entropy, regulariser=0.01)
    solution = learner.adapt(x, labels, stop=hs.Stop(rtol=0, max_steps=40), gradient=hs.Unrolled())
    assert bool((learner.predict(solution.state, x).argmax(-1) == labels).all())


def test_parameters_that_do_not_adapt_are_shared() -> None:
    x, y, _, _ = data()
    module = small()
    for p in module[0].parameters():  # type: ignore[index]
        p.requires_grad_(False)
    learner = MetaLearner(module, regulariser=PULL)
    solution = learner.adapt(x, y, stop=hs.Stop(rtol=0, max_steps=3), gradient=hs.Unrolled())
    assert list(learner.named(solution.state)) == ["2.weight", "2.bias"]
    torch.testing.assert_close(learner.predict(learner.initial_state({"support_inputs": x}, Own()), x), module(x))


def test_data_that_are_not_finite_have_a_status_and_no_gradient() -> None:
    x, y, q, answers = data()
    gradients = []
    for rows in ([0, 2], [0, 1, 2]):
        learner = MetaLearner(small(), regulariser=2.0, inner=GradientDescent(0.2))
        support = y.clone()
        support[1, 0] = float("nan")
        if rows == [0, 2]:
            solution = learner.adapt(x[rows], support[rows], stop=hs.Stop(rtol=1e-8), gradient=hs.Implicit())
        else:
            with pytest.warns(ConvergenceWarning, match="1 of 3 rows unconverged"):
                solution = learner.adapt(x, support, stop=hs.Stop(rtol=1e-8), gradient=hs.Implicit())
            assert solution.status.tolist() == [hs.Status.CONVERGED, hs.Status.DIVERGED, hs.Status.CONVERGED]
        good = solution.status == hs.Status.CONVERGED
        predictions = learner.predict(solution.state, q[rows])
        (predictions - answers[rows]).square().mean((1, 2))[good].sum().backward()
        gradients.append([p.grad for p in learner.parameters()])
    for without, beside in zip(*gradients, strict=True):
        torch.testing.assert_close(without, beside, rtol=1e-6, atol=1e-9)


def test_a_step_that_is_too_large_diverges_and_says_so() -> None:
    x, y, _, _ = data()
    learner = MetaLearner(nn.Linear(2, 1).double(), regulariser=PULL, inner=GradientDescent(50.0))
    with torch.no_grad():
        solution = learner.adapt(x, y, stop=hs.Stop(max_steps=300), gradient=hs.Implicit())
    assert (solution.status == hs.Status.DIVERGED).all()


def test_mistakes_are_named() -> None:
    x, y, _, _ = data()
    learner = MetaLearner(small())
    with pytest.raises(ValueError, match="Implicit needs a regulariser above 0"):
        learner.adapt(x, y, stop=hs.Stop(), gradient=hs.Implicit())
    with pytest.raises(ValueError, match="regulariser must be a number, 0 or more"):
        MetaLearner(small(), regulariser=-1)
    with pytest.raises(ContractError, match="1 is BatchNorm1d"):
        MetaLearner(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ContractError, match="no parameters that require a gradient"):
        MetaLearner(nn.Tanh())
    with pytest.raises(ContractError, match="several dtypes: float32, float64"):
        MetaLearner(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).double()))


def test_a_learner_is_a_model_that_can_be_audited() -> None:
    x, y, q, answers = data(tasks=4)
    learner = MetaLearner(small(), regulariser=PULL, trained_steps=4)
    inputs = {"support_inputs": x, "support_targets": y, "query_inputs": q}

    class Judge:
        def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs - targets).abs().flatten(1).amax(1) < 1

        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs - targets).square().flatten(1).mean(1)

    found = hs.audit(learner, [(inputs, answers)], steps=[1, 4, 16], judge=Judge(), alignment=False)
    assert "meta-learner" in str(found)


def test_targets_that_would_be_broadcast_are_refused() -> None:
    learner = MetaLearner(nn.Linear(2, 1).double(), regulariser=1.0, inner=GradientDescent(0.1))
    x, y, _, _ = data(tasks=3, samples=3)  # as many tasks as samples, so that every product of shapes fits
    with pytest.raises(ContractError, match="support_targets are of shape"):
        learner.adapt(x, y[..., 0], stop=hs.Stop(), gradient=hs.Implicit())


def test_a_loss_that_is_not_one_number_is_refused() -> None:
    learner = MetaLearner(nn.Linear(2, 1).double(), regulariser=1.0, loss=lambda out, y: (out - y) ** 2)
    x, y, _, _ = data()
    with pytest.raises(ContractError, match="the loss of a task is one number"):
        learner.adapt(x, y, stop=hs.Stop(), gradient=hs.Implicit())


def test_one_task_without_its_dimension_is_refused() -> None:
    learner = MetaLearner(nn.Linear(2, 1).double(), regulariser=1.0)
    x, y, _, _ = data()
    with pytest.raises(ContractError, match=r"one task alone is x\[None\]"):
        learner.adapt(x[0], y[0], stop=hs.Stop())


def test_a_task_without_samples_is_refused() -> None:
    learner = MetaLearner(nn.Linear(2, 1).double(), regulariser=1.0)
    x, y, _, _ = data()
    with pytest.raises(ContractError, match="without support samples"):
        learner.adapt(x[:, :0], y[:, :0], stop=hs.Stop())
