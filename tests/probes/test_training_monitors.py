"""Looking at a model during its training, and the training that must not notice."""

import random
import warnings

import lightning
import numpy as np
import pytest
import torch
import transformers
from lightning.pytorch.loggers import CSVLogger
from torch import nn

import homeostat as hs
from homeostat.errors import ContractError, ConvergenceWarning, InputError
from homeostat.probes.callbacks import TrainingMonitor, lightning_monitor, monitor_trainer

INPUTS = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))


class Cell(nn.Module):
    """With dropout, so that a look in training mode, or one that moves the generators, would show."""

    def __init__(self, gain=0.5):
        super().__init__()
        torch.manual_seed(1)
        self.linear, self.dropout, self.head = nn.Linear(6, 6), nn.Dropout(0.2), nn.Linear(6, 2)
        self.gain = gain

    def step(self, z, x):
        return torch.tanh(self.gain * self.linear(self.dropout(z)) + x)

    def forward(self, x, labels=None):
        z = torch.zeros_like(x)
        for _ in range(8):
            z = self.step(z, x)
        out = self.head(z)
        if labels is None:
            return out
        return {"loss": nn.functional.cross_entropy(out, labels), "logits": out}


def iterated(cell, **options):
    return hs.from_functions(
        encode=lambda x: x,
        initial_state=torch.zeros_like,
        step=cell.step,
        decode=lambda z, x: cell.head(z),
        **{"trained_steps": 8, **options},
    )


def train(cell, monitor=None, steps=6):
    torch.manual_seed(2)
    optimiser = torch.optim.Adam(cell.parameters(), 1e-2)
    drawn = []
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        x = torch.randn(4, 6)
        cell(x).square().mean().backward()
        if monitor is not None:  # in the middle of a step, where gradients stand
            monitor.observe(step)
        optimiser.step()
        drawn.append((random.random(), np.random.rand()))  # noqa: NPY002
    return [p.detach().clone() for p in cell.parameters()], drawn


def test_a_training_does_not_notice_that_it_is_watched():
    found, logged = [], []
    for watched in (False, True):
        cell = Cell().train()
        cell.head.eval()
        monitor = None
        if watched:
            monitor = TrainingMonitor(
                iterated(cell), [(INPUTS, None)], every=2, log=lambda n, step: logged.append((step, n)), modules=cell
            )
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        found.append(train(cell, monitor))
        assert (cell.training, cell.dropout.training, cell.head.training) == (True, True, False)
    for plain, watched in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(plain, watched)
    assert found[0][1] == found[1][1]
    assert [step for step, _ in logged] == [2, 4, 6]
    assert {"homeostat/alignment", "homeostat/alignment_null", "homeostat/residual_median"} <= set(logged[0][1])
    assert len(monitor.history) == 3


def test_a_model_that_draws_random_numbers_takes_none_from_the_training():
    def encode(x):
        return x + torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002

    model = hs.from_functions(
        encode=encode,
        initial_state=torch.zeros_like,
        step=lambda z, x: 0.5 * z + x,
        decode=lambda z, x: z,
        trained_steps=9,
    )
    monitor = TrainingMonitor(model, [(INPUTS, None)], every=1)

    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    with pytest.warns(ConvergenceWarning, match="draws random numbers"):  # two of its runs cannot be compared
        seen = monitor.observe(1)
    assert states() == before
    assert seen.scalars()["homeostat/failed"] == 1.0


@pytest.mark.parametrize(
    ("step", "start", "kind", "aligned"),
    [
        (lambda z, x: 0.5 * z + x, 0.0, "fixed_point", True),
        (lambda z, x: -z + x, 0.3, "cycle", None),  # period two, of an amplitude that the start decides
        (lambda z, x: -z + x, 0.0, "cycle", None),  # every other state is 0: its residual is infinite, and no failure
        (lambda z, x: z + x, 0.0, "drift", None),
        (lambda z, x: 2e9 * z + 1e9, 0.0, "divergence", None),
    ],
)
def test_what_is_logged_is_what_the_map_does(step, start, kind, aligned):
    model = hs.from_functions(
        encode=lambda x: x,
        initial_state=lambda x: torch.full_like(x, start),
        step=step,
        decode=lambda z, x: z,
        trained_steps=100,
    )
    monitor = TrainingMonitor(model, [(INPUTS, None)], every=5, count=10)
    seen = monitor.observe(0)
    numbers = seen.scalars()
    assert (seen.steps, seen.at) == (200, 0)
    assert numbers[f"homeostat/limit/{kind}"] == 1.0
    assert numbers["homeostat/failed"] == float(kind == "divergence")
    assert seen.readings["all examples"].failed.count == 10
    if aligned:
        assert numbers["homeostat/alignment"] == pytest.approx(1.0)
        cosines = nn.functional.cosine_similarity(INPUTS[:10, None], INPUTS[None, :10], dim=2)
        assert abs(numbers["homeostat/alignment_null"]) < cosines.abs().max()
        assert numbers["homeostat/residual_median"] < 1e-6
    if kind == "drift":  # z_n = n x: the last change is one part in n
        assert numbers["homeostat/residual_median"] == pytest.approx(1 / 200, rel=1e-4)
    if kind == "divergence":
        assert "homeostat/residual_median" not in numbers
        assert all(np.isfinite(list(numbers.values())))
    assert "alignment" in repr(seen)
    assert monitor.observe(3) is None
    assert monitor.observe(3, now=True) is not None


def test_a_probe_that_cannot_be_made_never_ends_a_training():
    cell = Cell()
    monitor = TrainingMonitor(iterated(cell), [(INPUTS, None)], every=1, modules=cell)
    with torch.no_grad():
        cell.linear.weight[0, 0] = float("nan")
    seen = monitor.observe(1)  # the state is not finite after the first step: that is a finding
    assert seen.scalars()["homeostat/failed"] == 1.0
    assert not seen.error
    monitor.model = iterated(cell, name="broken")
    monitor.model._functions["encode"] = lambda x: x / 0
    monitor.model._functions["initial_state"] = lambda x: x
    with pytest.warns(
        ConvergenceWarning, match="could not look at the model: ContractError: the state of broken is not"
    ):
        seen = monitor.observe(2)
    assert seen.scalars()["homeostat/failed"] == 1.0
    assert "not measured" in repr(seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.observe(3)  # said once


def test_several_difficulties():
    cell = Cell()
    examples = {"short": [(INPUTS[:3], None), (INPUTS[3:8], None)], "long": [(INPUTS[8:], None)]}
    monitor = TrainingMonitor(iterated(cell), examples, every=1, count=6, modules=cell, start="noise 1", prefix="p")
    numbers = monitor.observe(1).scalars("p")
    assert {"p/short/alignment", "p/long/alignment", "p/seconds"} <= set(numbers)
    assert {reading.failed.count for reading in monitor.history[0].readings.values()} == {6}


def test_nonsense():
    cell = Cell()
    batches = [(INPUTS, None)]
    for options, error in (
        ({"every": 0}, "every must be"),
        ({"every": 1, "count": 0}, "count must be"),
        ({"every": 1, "start": "nois 1"}, "no start 'nois 1'"),
        ({"every": 1, "rtol": -1.0}, "rtol must be"),
        ({"every": 1, "steps": 0}, "steps must be"),
        ({"every": 1, "log": 3}, "log must be a function"),
    ):
        with pytest.raises(InputError, match=error):
            TrainingMonitor(iterated(cell), batches, **options)
    with pytest.raises(InputError, match="does not say its trained_steps"):
        TrainingMonitor(iterated(cell, trained_steps=None), batches, every=1)
    with pytest.raises(InputError, match="no examples"):
        TrainingMonitor(iterated(cell), [], every=1)
    with pytest.raises(ContractError, match="no function"):
        TrainingMonitor(cell, batches, every=1)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.cell = Cell()

    def training_step(self, batch, _):
        loss = self.cell(*batch)["loss"]
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


LABELS = (INPUTS.sum(1) > 0).long()


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and devices
def test_lightning(tmp_path):
    found = []
    for watched in (False, True):
        callback = lightning_monitor(lambda module: iterated(module.cell), [(INPUTS, None)], every=3, count=8)
        logger = CSVLogger(tmp_path, name=str(watched))
        lightning.seed_everything(0, verbose=False)
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=logger,
            callbacks=[callback] if watched else [],
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=100,
        )
        data = torch.utils.data.TensorDataset(INPUTS, LABELS)
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=6, shuffle=True))
        found.append([p.detach().clone() for p in module.parameters()])
    for plain, seen in zip(*found, strict=True):
        assert torch.equal(plain, seen)
    assert [seen.at for seen in callback.monitor.history] == [0, 3, 6]
    assert trainer.callback_metrics["homeostat/failed"] == 0.0
    logger.save()
    table = (tmp_path / "True" / "version_0" / "metrics.csv").read_text().splitlines()
    assert "homeostat/alignment" in table[0]
    assert len(table) == 4  # a line for each look, whatever log_every_n_steps says


class Reporter(transformers.TrainerCallback):
    """What stands behind `report_to`."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **_):
        self.seen.append((state.global_step, dict(logs)))


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer(tmp_path):
    found, logs = [], []
    for watched in (False, True):
        transformers.set_seed(0)
        reporter = Reporter()
        trainer = transformers.Trainer(
            model=Cell(),
            args=transformers.TrainingArguments(
                output_dir=str(tmp_path),
                max_steps=6,
                per_device_train_batch_size=4,
                logging_steps=3,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                disable_tqdm=True,
                remove_unused_columns=False,
            ),
            train_dataset=[{"x": x, "labels": y} for x, y in zip(INPUTS, LABELS, strict=True)],
            callbacks=[reporter],
        )
        if watched:
            callback = monitor_trainer(trainer, iterated, [(INPUTS, None)], every=3, count=8)
        trainer.train()
        found.append([p.detach().clone() for p in trainer.model.parameters()])
        logs.append(reporter.seen)
    for plain, seen in zip(*found, strict=True):
        assert torch.equal(plain, seen)
    assert [step for step, numbers in logs[1] if "homeostat/alignment" in numbers] == [0, 3, 6]
    losses = [[(step, numbers["loss"]) for step, numbers in seen if "loss" in numbers] for seen in logs]
    assert losses[0] == losses[1]  # the trainer's own logs are all there still
    assert len(callback.monitor.history) == 3
    assert any("homeostat/failed" in entry for entry in trainer.state.log_history)


def test_where_numbers_go_is_the_trainers_business():
    with pytest.raises(InputError, match="leave out log"):
        lightning_monitor(iterated, [], every=1, log=print).on_train_start(
            type("Trainer", (), {"is_global_zero": True}), Cell()
        )
