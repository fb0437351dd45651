"""`homeostat serve`: answers over HTTP."""

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from homeostat.cli.options import APP, OUT, Device, device_of, task_of
from homeostat.engine import PENDING, Stop
from homeostat.errors import InputError
from homeostat.inference import Policy, predict_stream
from homeostat.inference.guided import Guided
from homeostat.inference.puzzles import most_steps
from homeostat.models import load
from homeostat.models.model_hash import hash_of
from homeostat.probes.examples import evaluating
from homeostat.serving import Limits, PuzzleSubject, ResidualStream, Subject
from homeostat.serving.arrays import ArraySubject
from homeostat.serving.run import listen, needs_packages, run
from homeostat.studies.bring_your_own import load_model
from homeostat.tasks import PuzzleTask

_DEFAULT = Limits()


@APP.command("serve")
def serve_command(
    checkpoint: Annotated[str | None, typer.Argument(help="Folder of a checkpoint, or a shipped one by name.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Your own model instead: path/to/file.py:build. This runs the file.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="When to stop, from homeostat calibrate.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    rtol: Annotated[float, typer.Option(min=0, max=1, help="Without a policy: relative residual to stop at.")] = 1e-3,
    max_steps: Annotated[
        int | None, typer.Option(min=1, max=10_000_000, help="Without a policy: most steps; by default what is needed.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Examples that are iterated together.")] = _DEFAULT.slots,
    queue: Annotated[int, typer.Option(min=1, help="Examples that may wait for a slot; then 503.")] = _DEFAULT.queue,
    timeout: Annotated[float, typer.Option(help="Seconds to an answer; then 504.")] = _DEFAULT.seconds,
    body_timeout: Annotated[
        float, typer.Option(help="Seconds for a request to arrive; then 408.")
    ] = _DEFAULT.body_seconds,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request; then 413.")] = _DEFAULT.body,
    max_elements: Annotated[int, typer.Option(min=1, help="Numbers of an example; then 413.")] = _DEFAULT.elements,
    max_examples: Annotated[int, typer.Option(min=1, help="Examples of a request; then 413.")] = _DEFAULT.examples,
    max_connections: Annotated[int, typer.Option(min=1, help="Open connections; then 503.")] = _DEFAULT.connections,
    grace: Annotated[float, typer.Option(min=0, help="Seconds to finish what is in flight when told to stop.")] = 10.0,
    device: Device = "cpu",
) -> None:
    """Answer over HTTP: examples of all clients join and leave one running batch."""
    if (checkpoint is None) == (model is None):
        raise InputError("give either a checkpoint or --model path/to/file.py:build")
    if policy is not None and max_steps is not None:
        raise InputError("--policy says itself how many steps are taken at most; leave --max-steps away")
    needs_packages()
    from homeostat.serving.app import Service

    try:
        limits = Limits(
            body=max_body,
            elements=max_elements,
            examples=max_examples,
            queue=queue,
            slots=slots,
            seconds=timeout,
            body_seconds=body_timeout,
            connections=max_connections,
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    target = device_of(device)
    with ExitStack() as stack:
        if model is not None:
            subject, steps_of = _own(model, None if device == "cpu" else target, max_steps, stack)
        else:
            assert checkpoint is not None
            subject, steps_of = _checkpoint(checkpoint, target, max_steps)

        if policy is None:
            open_stream = partial(
                ResidualStream,
                subject.model,
                stop=lambda inputs: Stop(rtol=rtol, max_steps=steps_of(inputs)),
                batch_size=slots,
            )
            about = {"policy": None, "rtol": rtol}
        else:
            rule = Policy.load(policy)
            Guided(subject.source, rule, subject.judge)  # refuses a policy that was made for another model
            open_stream = partial(predict_stream, subject.source, policy=rule, batch_size=slots, judge=subject.judge)
            about = {"policy": json.loads(rule.to_json())}
        about |= {"model_hash": hash_of(subject.source)}
        service = Service(subject, open_stream, pending=PENDING, limits=limits, about=about)
        where = listen(host, port)
        name = f"[{host}]" if ":" in host else host
        # For whoever started it: it is listening from here on.
        OUT.print(f"Serving {subject.name} at http://{name}:{where.getsockname()[1]}", soft_wrap=True, highlight=False)
        sys.stdout.flush()
        run(service, where, stop_seconds=grace)
    if service.solver.alive:  # a step that does not come back: the interpreter would wait, or die with its thread
        sys.stdout.flush()
        os._exit(1)


def _checkpoint(source: str, device: torch.device, limit: int | None) -> tuple[Subject, Callable[[Any], int]]:
    loaded = load(source, device=device)
    task = task_of(loaded)
    if not isinstance(task, PuzzleTask):
        raise InputError(
            f"{loaded.config.name} was trained for {task.name}, which has no form that people type; serve it with "
            "--model path/to/file.py:build, which takes numbers"
        )
    return PuzzleSubject(loaded, task), lambda inputs: limit or most_steps(loaded.config, max(inputs.shape[2:]))


def _own(
    spec: str, device: torch.device | None, limit: int | None, stack: ExitStack
) -> tuple[Subject, Callable[[Any], int]]:
    own = load_model(spec)
    where = stack.enter_context(evaluating(own.subject, device))
    steps = limit or own.default_budgets()[-1]
    return ArraySubject(own.subject, own.examples, device=where, blame=own.blame), lambda inputs: steps
