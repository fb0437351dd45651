"""A comparison on disk: `comparison.json` for programs, `comparison.html` for people."""

import dataclasses
import json
import os
from pathlib import Path

from homeostat.files import write_text
from homeostat.probes.comparison.page import render_comparison
from homeostat.probes.comparison.result import Comparison
from homeostat.probes.saving import plain

FORMAT = 1


def save_comparison(found: Comparison, folder: str | os.PathLike[str]) -> Path:
    """Write both files.

    Returns:
        The folder.

    Raises:
        OutputError: it cannot be written; each file is whole or not there.
    """
    folder = Path(folder)
    write_text(folder / "comparison.json", to_json(found))
    write_text(folder / "comparison.html", render_comparison(found))
    return folder


def to_json(found: Comparison) -> str:
    """Strict JSON: `{"format": 1, ...}`, fields as in `probes/comparison/result.py`; what is not finite is null."""
    return json.dumps({"format": FORMAT, **plain(dataclasses.asdict(found))}, allow_nan=False, indent=1) + "\n"
