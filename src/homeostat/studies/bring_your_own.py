"""Somebody's own model from a Python file that they name: `path/to/file.py:build`."""

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homeostat.errors import ContractError, HomeostatError, InputError
from homeostat.models import as_model
from homeostat.studies.task_audit import default_budgets


@dataclass(frozen=True)
class OwnModel:
    """What `build()` returned: an object with the functions of the contract, and its examples."""

    subject: Any
    examples: Any
    path: Path
    training_examples: Any = None
    """What it was trained on, where it says so."""
    training_is_whole: bool = False
    """Whether that is all that it was trained on."""

    def default_budgets(self) -> list[int]:
        """Up to eight times the trained horizon, or 128 steps where that is unknown."""
        horizon = getattr(self.subject, "trained_steps", None)
        return default_budgets(8 * horizon if horizon else 128)

    @contextmanager
    def blame(self) -> Iterator[None]:
        """Turn an exception that the user's code raises into one line that says where."""
        with _blame(self.path):
            yield


def load_model(spec: str, *, option: str = "--model", needs_examples: bool = True) -> OwnModel:
    """Run the file and call its function.

    Args:
        spec: `path/to/file.py:function`. The function returns an object with `encode`, `initial_state`, `step`,
            `decode` and `examples` (batches `(inputs, targets)`, or a dict of such by difficulty);
            `correct(outputs, targets)`, `symbols`, `loss`, `answers`, `score` and `trained_steps` are
            used where they are there, and so are `training_examples`, in the form of the examples, with
            `training_is_whole = True` where these are all that it was trained on.
        option: what errors call the place where the user wrote it.
        needs_examples: refuse a model that brings none.

    Raises:
        InputError: the file or the function is not there, or there are no examples.
        ContractError: the code fails, or what it returns is not a model.

    Example:
        >>> load_model("model.py")
        Traceback (most recent call last):
        homeostat.errors.InputError: --model takes path/to/file.py:function, such as model.py:build, not 'model.py'
    """
    subject, where, path = _called(spec, option)
    as_model(subject, where=where)
    examples = _batches(subject, "examples", where, path)
    if examples is None and needs_examples:
        raise InputError(f"{where} returned a model without examples: an audit needs batches of (inputs, targets)")
    training = _batches(subject, "training_examples", where, path)
    whole = getattr(subject, "training_is_whole", False)
    if not isinstance(whole, bool):
        raise ContractError(f"training_is_whole of {where} must be True or False, not {whole!r}")
    return OwnModel(subject, examples, path, training, whole)


def load_examples(spec: str, *, option: str = "--examples") -> Any:
    """Run the file and call its function, which returns batches `(inputs, targets)`, or a dict of such by difficulty.

    Raises:
        InputError: the file or the function is not there.
        ContractError: the code fails, or what it returns is no batches.
    """
    found, where, _ = _called(spec, option)
    if not isinstance(found, Mapping) and not hasattr(found, "__iter__"):
        raise ContractError(f"{where} must return batches (inputs, targets), or a dict of such by difficulty")
    return found


def _called(spec: str, option: str) -> tuple[Any, str, Path]:
    """What the function of a file returns, how errors name it, and the file."""
    name, _, function = spec.rpartition(":")
    if not name or not function.isidentifier():
        raise InputError(f"{option} takes path/to/file.py:function, such as model.py:build, not {spec!r}")
    path = Path(name)
    if not path.is_file():
        raise InputError(f"{option}: there is no file {path}")
    # Under a name of its own, so that a file called json.py or homeostat.py hides no module.
    module_spec = importlib.util.spec_from_file_location(f"homeostat_model_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"{option}: {path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent.resolve()))  # so that the file can import its neighbours
    sys.modules[module_spec.name] = module
    with _blame(path):
        module_spec.loader.exec_module(module)
    call = getattr(module, function, None)
    if not callable(call):
        raise InputError(f"{option}: {path} has no function {function}()")
    with _blame(path):
        found = call()
    return found, f"{function}() in {path}", path


def _batches(subject: Any, name: str, where: str, path: Path) -> Any:
    """Batches, or a dict of such, or a function that gives them; None where there are none."""
    with _blame(path):
        found = getattr(subject, name, None)
        found = found() if callable(found) else found
    if found is not None and not isinstance(found, Mapping) and not hasattr(found, "__iter__"):
        raise ContractError(f"{name} of {where} must be batches (inputs, targets), or a dict of such by difficulty")
    return found


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    try:
        yield
    except HomeostatError:
        raise
    except (Exception, SystemExit) as error:
        # Without a line of the file it happened in what we, or torch, did with what the file gave us.
        frames = [f for f in traceback.extract_tb(error.__traceback__) if _same(f.filename, path)]
        line = frames[-1].lineno if frames else None
        if isinstance(error, SyntaxError) and error.filename is not None and _same(error.filename, path):
            line = error.lineno
        where = str(path) if line is None else f"{path}, line {line}"
        message = f": {str(error).splitlines()[0]}" if str(error).strip() else ""
        raise ContractError(f"{where}: {type(error).__name__}{message}") from error


def _same(filename: str, path: Path) -> bool:
    return Path(filename).resolve() == path.resolve()
