"""Audits on disk: `audit.json` for programs, `examples.parquet` for data frames, `report.html` for people."""

import dataclasses
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from homeostat.checks import is_number, plain_number
from homeostat.files import write_bytes, write_text
from homeostat.probes.report import render_report
from homeostat.probes.results import Audit

FORMAT = 1


def save_audits(audits: Sequence[Audit], folder: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Write the three files for one audit, or for several to be compared.

    Returns:
        The folder.

    Raises:
        OutputError: it cannot be written; each file is whole or not there.
    """
    folder = Path(folder)
    title = title or " and ".join(audit.model for audit in audits)
    write_text(folder / "audit.json", to_json(audits))
    write_bytes(folder / "examples.parquet", _parquet(audits))
    write_text(folder / "report.html", render_report(audits, title=title))
    return folder


def to_json(audits: Sequence[Audit]) -> str:
    """Strict JSON: `{"format": 1, "audits": [...]}`, fields as in `probes/results.py`; what is not finite is null."""
    fields = [dataclasses.asdict(dataclasses.replace(audit, courses=None)) for audit in audits]
    for audit in fields:
        del audit["courses"]  # of a size for computing with, not for reading
    record = {"format": FORMAT, "audits": [plain(audit) for audit in fields]}
    return json.dumps(record, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """What strict JSON can hold: null for what is not finite, lists for tuples, text for keys."""
    if is_number(value):
        return plain_number(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _parquet(audits: Sequence[Audit]) -> bytes:
    """One row an example: model, difficulty, and the fields of `Example`, its alignments as columns `alignment_*`."""
    rows = []
    for audit in audits:
        for difficulty in audit.difficulties:
            for example in difficulty.examples:
                row = dataclasses.asdict(example)
                aligned = {f"alignment_{start}": cosine for start, cosine in row.pop("alignment").items()}
                rows.append({"model": audit.model, "difficulty": difficulty.name, **row, **aligned})
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.Table.from_pydict({name: [row.get(name) for row in rows] for name in names})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
