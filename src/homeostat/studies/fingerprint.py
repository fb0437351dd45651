"""Which code computed a result: a hash of the source files that it depends on.

Comments, docstrings and layout do not count, so that rewording a sentence does not make results look foreign.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

from homeostat.errors import HomeostatError


def fingerprint(parts: Iterable[str]) -> str:
    """A hash of some packages and files of `homeostat`, given relative to it.

    Example:
        >>> fingerprint(["engine"]) == fingerprint(["engine"]) != fingerprint(["tasks"])
        True
    """
    return _fingerprint(tuple(sorted(set(parts))))


@cache
def _fingerprint(parts: tuple[str, ...]) -> str:
    root = Path(str(files("homeostat")))
    digest = hashlib.sha256()
    for part in parts:
        path = root / part
        sources = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        if not sources or not all(source.is_file() for source in sources):
            raise HomeostatError(f"there is no source code at {path} to take a fingerprint of")
        for source in sources:
            digest.update(source.relative_to(root).as_posix().encode() + b"\0")
            digest.update(_what_runs(source.read_text(encoding="utf-8")).encode() + b"\0")
    return digest.hexdigest()


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
