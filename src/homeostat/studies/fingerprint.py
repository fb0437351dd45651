"""Which code computed a result: a hash of the source that it depends on.

That is the modules named by the job and every module of the package that these import, directly or through others.
Lists of what there is (the `__init__` of a package, the table of networks) and reports do not count, so that a
new task or probe leaves former results alone; nor do comments, docstrings and layout.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from homeostat.errors import HomeostatError

_PACKAGE = "homeostat"
_APART = ("models/registry.py", "probes/report/", "probes/saving.py", "probes/audits/table.py", "studies/jobs.py")
"""The list of networks, how audits are shown, and how jobs are declared."""


def fingerprint(modules: Iterable[str]) -> str:
    """A hash of some modules of `homeostat` and all that they import of it.

    Args:
        modules: by their full names.

    Example:
        >>> fingerprint(["homeostat.files"]) == fingerprint(["homeostat.files"]) != fingerprint(["homeostat.errors"])
        True
    """
    return _fingerprint(tuple(sorted(set(modules))))


@cache
def _fingerprint(modules: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sources(modules):
        digest.update(path.relative_to(_root()).as_posix().encode() + b"\0" + _what_runs_in(path) + b"\0")
    return digest.hexdigest()


def sources(modules: Iterable[str]) -> list[Path]:
    """The files that `fingerprint` takes in, sorted.

    Raises:
        HomeostatError: a module has no source there.
    """
    found: set[Path] = set()
    waiting = [_file(module) for module in modules]
    while waiting:
        path = waiting.pop()
        if path in found or path.relative_to(_root()).as_posix().startswith(_APART):
            continue
        found.add(path)
        waiting += _imported(path)
    return sorted(found)


def _root() -> Path:
    return Path(str(files(_PACKAGE)))


def _file(module: str) -> Path:
    place = _root().joinpath(*module.split(".")[1:])
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not path.is_file():
        raise HomeostatError(f"there is no source of {module} at {path} to take a fingerprint of")
    return path


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    """Files of the package that a file imports."""
    return tuple(dict.fromkeys(_imports(path)))


def _imports(path: Path) -> Iterator[Path]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith(f"{_PACKAGE}.") and (target := _file(alias.name)).name != "__init__.py":
                    yield target
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == _PACKAGE:
            for alias in node.names:
                target = _origin(str(node.module), alias.name)
                if target is not None:
                    yield target


def _origin(module: str, name: str) -> Path | None:
    """The file where a name that is imported from a module is made; None when it is made in a list itself."""
    path = _file(module)
    if path.name != "__init__.py":
        return path
    inside = path.parent / f"{name}.py"
    if inside.is_file():
        return inside
    for node in _tree(path).body:
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return _origin(str(node.module), name)
    return None


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _what_runs_in(path: Path) -> bytes:
    return hashlib.sha256(_what_runs(path.read_text(encoding="utf-8")).encode()).digest()


def _what_runs(source: str) -> str:
    """The source without comments, docstrings and layout.

    Example:
        >>> _what_runs('def f():\\n    "Say one."\\n    return 1  # one') == _what_runs("def f(): return 1")
        True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant | ast.JoinedStr):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
