"""Sudokus as text: one a line, row by row, with 0 or a dot for a blank; also the lists that people publish."""

import re

import numpy as np

from homeostat.errors import InputError
from homeostat.tasks.sudoku_geometry import BOXES, Geometry, geometry
from homeostat.tasks.sudoku_solver import Digits

_HEADERS = {"puzzle", "puzzles", "quiz", "quizzes", "question", "grid", "clues", "givens", "sudoku"}
_SOLUTIONS = {"solution", "solutions", "answer", "answers"}
_FIELD = re.compile(r"\"[^\"]*\"|[^\s,;\"]+")


def format_digits(digits: Digits) -> str:
    """Digits `(cells,)` as one line, blanks as dots.

    Example:
        >>> format_digits(np.array([1, 0, 0, 4], dtype=np.uint8))
        '1..4'
    """
    return "".join(map(str, digits)).replace("0", ".")


def read_lines(data: bytes, *, name: str, sides: tuple[int, ...]) -> list[tuple[str, Digits, Digits | None]]:
    """Read puzzles, one a line.

    Fields stand between commas, semicolons or blanks, with or without quotation marks. The puzzle is the first field,
    or the one that a header line calls puzzle, quiz, question, grid, clues, givens or sudoku; a full grid of the same
    size right behind it, or below the header solution or answer, is its solution. Ratings and remarks beside them are
    not read. Blank lines, and what follows a `#`, are skipped.

    Args:
        data: UTF-8 text.
        name: where it came from, for the errors.
        sides: sides that are allowed.

    Returns:
        For each puzzle where it stands, its digits `(cells,)` with blanks 0, and the solution beside it, if any.

    Raises:
        InputError: a line of another length, a character that is no digit of this size, two equal digits in a unit, a
            solution that is none, or no puzzle at all.

    Example:
        >>> read_lines(b"1...,hard\\n", name="stdin", sides=(4,))
        Traceback (most recent call last):
        homeostat.errors.InputError: stdin, line 1, column 1: '1...' has 4 characters; a puzzle has 16 for 4x4
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: byte {error.start + 1} is not UTF-8 text; write one sudoku a line") from None
    found = []
    columns: tuple[int, int | None] | None = None
    begun = False
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        fields = [(match.start() + 1, match.group()) for match in _FIELD.finditer(line.split("#")[0])]
        fields = [(at + 1, field[1:-1]) if field.startswith('"') else (at, field) for at, field in fields]
        if not fields:
            continue
        if not begun:
            begun = True
            columns = _header([field for _, field in fields])
            if columns is not None:
                continue
        where = f"{name}, line {number}"
        puzzle, solution = columns or (0, 1)
        if puzzle is None or puzzle >= len(fields):
            raise InputError(f"{where}: {len(fields)} fields; the header names the puzzle as field {puzzle + 1}")
        at, field = fields[puzzle]
        digits = _read(field, at, where, sides)
        given = None
        if solution is not None and solution < len(fields) and solution != puzzle:
            given = _solution(*fields[solution], digits, where, named=columns is not None)
        found.append((f"line {number}", digits, given))
    if not found:
        raise InputError(f"{name}: no sudoku found; write one a line, {_lengths(sides)}, 0 or . for blanks")
    return found


def _header(fields: list[str]) -> tuple[int, int | None] | None:
    """Columns of puzzle and solution when these are the fields of a header line."""
    names = [field.strip().lower() for field in fields]
    puzzle = [i for i, field in enumerate(names) if field in _HEADERS]
    solution = [i for i, field in enumerate(names) if field in _SOLUTIONS]
    return (puzzle[0], solution[0] if solution else None) if puzzle else None


def _lengths(sides: tuple[int, ...]) -> str:
    return " or ".join(f"{side * side} for {side}x{side}" for side in sides)


def _read(field: str, at: int, where: str, sides: tuple[int, ...]) -> Digits:
    side = {s * s: s for s in sides}.get(len(field))
    if side is None:
        shown = field if len(field) <= 20 else f"{field[:17]}..."
        raise InputError(f"{where}, column {at}: {shown!r} has {len(field)} characters; a puzzle has {_lengths(sides)}")
    for column, character in enumerate(field, start=at):
        if character not in "0.123456789"[: side + 2]:
            what = "is too large" if character in "123456789" else "is no digit"
            raise InputError(
                f"{where}, column {column}: {character!r} {what}; a {side}x{side} sudoku has 1 to {side}, "
                "and 0 or . for blanks"
            )
    digits = np.array([int(character) for character in field.replace(".", "0")], dtype=np.uint8)
    clash = repeated(digits, geometry(side))
    if clash is not None:
        first, second, unit = clash
        raise InputError(
            f"{where}, column {at + second}: a second {digits[second]} in {unit}; the first is at column {at + first}"
        )
    return digits


def repeated(digits: Digits, geo: Geometry) -> tuple[int, int, str] | None:
    """Two cells of one unit that hold the same digit, and the unit's name; None where there are none.

    Example:
        >>> repeated(np.array([1, 0, 0, 1] + [0] * 12, dtype=np.uint8), geometry(4))
        (0, 3, 'row 1')
    """
    for number, unit in enumerate(geo.units):
        seen: dict[int, int] = {}
        for cell in unit.tolist():
            digit = int(digits[cell])
            if digit and digit in seen:
                return seen[digit], cell, geo.unit_name(number)
            seen[digit] = cell
    return None


def _solution(at: int, field: str, digits: Digits, where: str, *, named: bool) -> Digits | None:
    """The solution in a field, or None when the field is something else (a rating, a remark)."""
    if not named and (len(field) != len(digits) or not field.isdecimal() or "0" in field):
        return None
    side = {s * s: s for s in BOXES}[len(digits)]
    full = len(field) == len(digits) and field.isascii() and field.isdecimal()
    grid = np.array([int(c) for c in field], dtype=np.uint8) if full else np.zeros_like(digits)
    right = (grid > 0).all() and (grid <= side).all() and repeated(grid, geometry(side)) is None
    if not right or (grid[digits > 0] != digits[digits > 0]).any():
        raise InputError(
            f"{where}, column {at}: the solution beside the puzzle does not solve it; correct or remove it"
        )
    return grid
