"""The monitor as a callback of Lightning's Trainer."""

from functools import cache
from typing import Any

from homeostat.errors import InputError
from homeostat.probes.callbacks.monitor import TrainingMonitor


def lightning_monitor(build: Any, examples: Any, **options: Any) -> Any:
    """A Lightning `Callback` that looks before training and after every `every` steps of the optimiser.

    Numbers go to every logger of the trainer, at the step of the look (whatever `log_every_n_steps` is), and into
    `trainer.callback_metrics`, where `EarlyStopping` and `ModelCheckpoint` find them. Only the first process looks: the
    module has to be whole there, which it is not under FSDP. `callback.monitor.history` has what was seen.

    Args:
        build: `LightningModule -> model`, anything with the functions of the contract; or that model itself.
        examples: see `TrainingMonitor`; inputs as `encode` takes them.
        options: see `TrainingMonitor`: `every`, `steps`, `start`, `count`, `rtol`, `modules`, `prefix`.

    Raises:
        InputError: Lightning is not installed, or what `TrainingMonitor` raises when training starts.

    Example:
        >>> import torch
        >>> callback = lightning_monitor(lambda module: module.iterated, [(torch.zeros(4, 3), None)], every=100)
        >>> type(callback).__name__
        'LightningMonitor'
    """
    return _callback_class()(build, examples, options)


@cache
def _callback_class() -> type:
    try:
        from lightning.pytorch.callbacks import Callback
    except ImportError:
        try:
            from pytorch_lightning.callbacks import Callback
        except ImportError as error:
            raise InputError("lightning_monitor needs Lightning: pip install 'homeostat[lightning]'") from error

    class LightningMonitor(Callback):  # pyright: ignore[reportGeneralTypeIssues] - of either package
        def __init__(self, build: Any, examples: Any, options: dict[str, Any]) -> None:
            super().__init__()
            self._build, self._examples, self._options = build, examples, options
            self.monitor: TrainingMonitor | None = None
            self._seen = -1

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Make the monitor, and look once before anything is trained."""
            if not trainer.is_global_zero:
                return
            self.monitor = monitor_of(self._build, pl_module, self._examples, self._options)
            self._look(trainer)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            """Look if it is time to."""
            numbers = self._look(trainer)
            if numbers:
                pl_module.log_dict(numbers, logger=False, on_step=True, on_epoch=False, rank_zero_only=True)

        def _look(self, trainer: Any) -> dict[str, float]:
            step = int(trainer.global_step)
            if self.monitor is None or step == self._seen:  # batches that are accumulated are one step
                return {}
            self._seen = step
            seen = self.monitor.observe(step)
            if seen is None:
                return {}
            numbers = seen.scalars(self.monitor.prefix)
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step=step)
            return numbers

    return LightningMonitor


def monitor_of(build: Any, module: Any, examples: Any, options: dict[str, Any]) -> TrainingMonitor:
    """The monitor of a module that is trained; `build` makes the model from it, or is the model."""
    if "log" in options:
        raise InputError("the numbers go to the trainer's own loggers: leave out log, or use TrainingMonitor")
    model = build if hasattr(build, "initial_state") else build(module)
    modules = options.get("modules", ())
    modules = [*(modules if isinstance(modules, list | tuple) else [modules]), module]
    return TrainingMonitor(model, examples, **{**options, "modules": modules})
