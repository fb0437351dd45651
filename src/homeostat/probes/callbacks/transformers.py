"""The monitor as a callback of the Hugging Face Trainer."""

from functools import cache
from typing import Any

from homeostat.errors import InputError
from homeostat.probes.callbacks.lightning import monitor_of


def monitor_trainer(trainer: Any, build: Any, examples: Any, **options: Any) -> Any:
    """Let a Hugging Face `Trainer` look before training and after every `every` steps of the optimiser.

    Numbers go through `trainer.log`, so to everything in its `report_to`, and into `trainer.state.log_history`. Only
    the first process looks: the module has to be whole there, which it is not under FSDP or ZeRO 3.

    Args:
        trainer: the trainer, before `train()`.
        build: `trainer.model -> model`, anything with the functions of the contract; or that model itself.
        examples: see `TrainingMonitor`; inputs as `encode` takes them.
        options: see `TrainingMonitor`: `every`, `steps`, `start`, `count`, `rtol`, `modules`, `prefix`.

    Returns:
        The callback, which the trainer has now; its `monitor.history` has what was seen.

    Raises:
        InputError: transformers is not installed, `trainer` is none, or what `TrainingMonitor` raises.
    """
    callback = _callback_class()(trainer, monitor_of(build, trainer.model, examples, options))
    trainer.add_callback(callback)
    return callback


@cache
def _callback_class() -> type:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise InputError("monitor_trainer needs transformers: pip install 'homeostat[transformers]'") from error

    class TrainerMonitor(TrainerCallback):
        def __init__(self, trainer: Any, monitor: Any) -> None:
            self._trainer, self.monitor = trainer, monitor

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Look once before anything is trained."""
            self._look(state, control)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            """Look if it is time to."""
            self._look(state, control)

        def _look(self, state: Any, control: Any) -> None:
            if not state.is_world_process_zero:
                return
            seen = self.monitor.observe(state.global_step)
            if seen is not None:
                due = control.should_log
                self._trainer.log(seen.scalars(self.monitor.prefix))
                control.should_log = due  # logging takes this flag down, and the trainer's own log is still to come

    return TrainerMonitor
