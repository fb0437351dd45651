"""Answers as text, as JSON lines, and as pictures, each with how it was reached."""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from homeostat.files import write_bytes
from homeostat.inference.puzzles import Answer
from homeostat.tasks import PuzzleTask


def _how(answer: Answer) -> str:
    judged = "right" if answer.right else "WRONG"
    text = f"{judged}, {answer.steps} steps, relative residual {answer.residual:.1e}, {answer.status.name}"
    return f"{text}, ABSTAINED" if answer.abstained else text


def as_text(task: PuzzleTask, answer: Answer) -> str:
    """The answer in the task's text form, and a comment line: where the puzzle came from, whether the answer is right
    (checked without the model), steps, residual, status.
    """
    text = task.text(answer.puzzle.inputs, answer.answer).rstrip("\n")
    gap = "\n" if "\n" in text else ""
    return f"{text}\n# {answer.puzzle.where}: {_how(answer)}\n{gap}"


def as_json(task: PuzzleTask, answer: Answer) -> str:
    """A line of strict JSON: where, answer (several lines as a list), steps, residual (or null), status, right,
    confidence (or null), abstained."""
    text = task.text(answer.puzzle.inputs, answer.answer).rstrip("\n")
    record = {
        "where": answer.puzzle.where,
        "answer": text.split("\n") if "\n" in text else text,
        "steps": answer.steps,
        "residual": answer.residual if math.isfinite(answer.residual) else None,
        "status": answer.status.name,
        "right": answer.right,
        "confidence": answer.confidence if math.isfinite(answer.confidence) else None,
        "abstained": answer.abstained,
    }
    return json.dumps(record, allow_nan=False) + "\n"


def write_pictures(task: PuzzleTask, answers: Sequence[Answer], output: Path) -> list[tuple[Path, str]]:
    """Write each answer as a PNG; several go to `NAME-1.png`, `NAME-2.png`, …

    Returns:
        For each file, its path and how the answer was reached.

    Raises:
        OutputError: a file cannot be written.
    """
    written = []
    for number, answer in enumerate(answers, start=1):
        path = output if len(answers) == 1 else output.with_name(f"{output.stem}-{number}{output.suffix or '.png'}")
        data = io.BytesIO()
        task.picture(answer.puzzle.inputs, answer.answer).save(data, format="PNG")
        write_bytes(path, data.getvalue())
        written.append((path, _how(answer)))
    return written
