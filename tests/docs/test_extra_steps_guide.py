"""The guide to extra steps runs as it stands there."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "test-like-you-train.md"


def test_the_guide_to_extra_steps_runs(capsys) -> None:
    names: dict[str, object] = {}
    for snippet in re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(snippet, str(GUIDE), "exec"), names)
    out = capsys.readouterr().out
    assert "1000 of 1000 overparametrised" in out
    assert re.search(r"T1: D >= 0\n  holds in 1000 of 1000 rows", out)
    assert re.search(r"T6: .*\n  holds in 1 of 1 rows", out)
    assert re.search(r"D\(N=1, dN=1\) of 1 rows: least 0\.125", out)
