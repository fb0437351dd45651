"""The command line, called in this process: what it answers, and what it says to bad input."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from homeostat.cli import main
from homeostat.models import load
from homeostat.models.checkpoint import save
from homeostat.tasks import get_task
from homeostat.tasks.maze_pictures import puzzle_picture, read_picture

BITS = b"1101\n\n# a comment\n10\n00110011\n1111\n"
MAZE = b"#######\n#S    #\n# ### #\n#G#   #\n#######\n"
MAZES = b"#####\n#S G#\n#####\n\n" + MAZE + b"\n#####\n#G S#\n#####\n"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["homeostat", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        return Done(int(left.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Runs a command that must end in one line and a code that is not zero; returns the line."""

    def call(*arguments: object, stdin: bytes = b"") -> str:
        done = run(*arguments, stdin=stdin)
        assert done.code != 0
        assert done.out == ""
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert done.err.endswith("\n")
        return done.err.removeprefix("error: ").rstrip("\n")

    return call


Refused = Callable[..., str]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# What it answers


def test_tasks_lists_tasks_recipes_and_checkpoints(run: Run) -> None:
    done = run("tasks")
    assert done.code == 0
    for word in ("prefix-sums", "mazes", "path-independent (reference)", "fixed", "1024 bits", "rooms a side"):
        assert word in done.out


def test_help_is_there_for_every_command(run: Run) -> None:
    assert run("--help").code == 0
    for command in ("demo", "train", "audit", "predict", "tasks"):
        done = run(command, "--help")
        assert done.code == 0
        assert command in done.out


def test_bits_from_a_file_and_from_standard_input(run: Run, bits_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bits.txt").write_bytes(BITS)
    done = run("predict", bits_checkpoint, tmp_path / "bits.txt")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [len(line) for line in lines[::2]] == [4, 2, 8, 4]
    assert all(set(line) <= set("01") for line in lines[::2])
    for line, where in zip(lines[1::2], (1, 4, 5, 6), strict=True):
        pattern = rf"# line {where}: (right|WRONG), \d+ steps, relative residual \d\.\de[-+]\d\d, [A-Z_]+(, ABSTAINED)?"
        assert re.fullmatch(pattern, line)
    assert run("predict", bits_checkpoint, stdin=BITS).out == done.out
    assert run("predict", bits_checkpoint, "-", stdin=BITS).out == done.out


def test_json_lines(run: Run, bits_checkpoint: Path, maze_checkpoint: Path) -> None:
    text = run("predict", bits_checkpoint, stdin=BITS).out.splitlines()[::2]
    done = run("predict", bits_checkpoint, "--format", "json", stdin=BITS)
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["answer"] for row in rows] == text
    assert [row["where"] for row in rows] == ["line 1", "line 4", "line 5", "line 6"]
    assert set(rows[0]) == {"where", "answer", "steps", "residual", "status", "right", "confidence", "abstained"}
    bits = [line for line in BITS.decode().split() if set(line) <= set("01")]
    for row, puzzle in zip(rows, bits, strict=True):  # judged against the parity, counted here by hand
        parity = "".join(str(puzzle[: i + 1].count("1") % 2) for i in range(len(puzzle)))
        assert row["right"] is (row["answer"] == parity)
    done = run("predict", maze_checkpoint, "--format", "json", stdin=MAZES)
    heights = [len(json.loads(line)["answer"]) for line in done.out.splitlines()]
    assert heights == [3, 5, 3]


def test_mazes_of_mixed_sizes_as_text(run: Run, maze_checkpoint: Path) -> None:
    done = run("predict", maze_checkpoint, stdin=MAZES)
    assert done.code == 0
    blocks = done.out.strip("\n").split("\n\n")
    for block, maze in zip(blocks, MAZES.decode().strip("\n").split("\n\n"), strict=True):
        *answer, how = block.split("\n")
        assert "\n".join(answer).replace("*", " ") == maze.strip("\n")
        assert how.startswith("# line ")


def test_a_picture_in_and_a_picture_out(run: Run, maze_checkpoint: Path, tmp_path: Path) -> None:
    task = get_task("mazes")
    (puzzle,) = task.parse(MAZE, name="maze")
    puzzle_picture(puzzle.inputs, cell=9).save(tmp_path / "maze.png")
    done = run("predict", maze_checkpoint, tmp_path / "maze.png", "--output", tmp_path / "solved.png")
    assert done.code == 0
    how = r"(right|WRONG), \d+ steps, relative residual \S+, [A-Z_]+(, ABSTAINED)?\n"
    assert re.fullmatch(r".*solved\.png: " + how, done.out)
    with Image.open(tmp_path / "solved.png") as solved:
        pixels = np.asarray(solved.convert("RGB")).copy()
    # The path is drawn into the maze that was given: walls, start and goal are where they were.
    blue = (pixels == (0, 114, 178)).all(2)
    pixels[blue] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    assert (read_picture(stream.getvalue(), name="solved").inputs == puzzle.inputs).all()
    said = json.loads(run("predict", maze_checkpoint, tmp_path / "maze.png", "--format", "json").out)
    marked = sum(line.count("*") for line in said["answer"])
    assert blue.sum() == marked * (pixels.shape[1] // 7) ** 2


def test_several_pictures_are_numbered(run: Run, maze_checkpoint: Path, bits_checkpoint: Path, tmp_path: Path) -> None:
    done = run("predict", maze_checkpoint, "--format", "picture", "--output", tmp_path / "x.png", stdin=MAZES)
    assert done.code == 0
    assert files(tmp_path) == {"x-1.png", "x-2.png", "x-3.png"}
    assert run("predict", bits_checkpoint, "--output", tmp_path / "b.png", stdin=b"1101\n").code == 0
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.size[0] > 40


def test_output_goes_to_a_file_whole(run: Run, bits_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "answers.txt"
    done = run("predict", bits_checkpoint, "--output", target, stdin=BITS)
    assert (done.code, done.out) == (0, "")
    assert target.read_text() == run("predict", bits_checkpoint, stdin=BITS).out
    assert files(tmp_path) == {"new/answers.txt"}


def test_steps_are_limited_on_demand(run: Run, bits_checkpoint: Path) -> None:
    done = run("predict", bits_checkpoint, "--max-steps", "3", "--rtol", "0", stdin=b"1101\n")
    assert ", 3 steps" in done.out
    assert "MAX_STEPS" in done.out


def test_what_is_not_finite_is_null_in_json(run: Run, bits_checkpoint: Path, tmp_path: Path) -> None:
    broken = load(bits_checkpoint)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    save(broken.model, broken.config, tmp_path)
    done = run("predict", tmp_path, "--format", "json", stdin=b"11\n")
    record = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (record["status"], record["residual"]) == ("DIVERGED", None)


def test_train_then_audit_with_a_report(run: Run, tmp_path: Path) -> None:
    model = {"kind": "recall", "spatial_dims": 1, "in_channels": 1, "classes": 2, "width": 4}
    recipe = {"name": "mine", "task": {"name": "prefix-sums"}, "model": model, "depth": {"kind": "fixed", "steps": 3}}
    (tmp_path / "mine.json").write_text(json.dumps(recipe | {"steps": 5, "batch": 4, "sizes": [6]}))
    arguments = ["train", "prefix-sums", "--recipe", tmp_path / "mine.json", "--out", tmp_path / "run"]
    done = run(*arguments, "--steps", "2", "--seed", "5")
    assert done.code == 0
    assert "seed 5" in done.out
    assert load(tmp_path / "run").config.training["recipe"]["steps"] == 2
    done = run("audit", tmp_path / "run", "--sizes", "8,4", "--count", "3", "--steps", "1,9", "--out", tmp_path / "a")
    assert done.code == 0
    assert files(tmp_path / "a") == {"report.html", "audit.json", "examples.parquet"}
    told = json.loads((tmp_path / "a" / "audit.json").read_text())["audits"][0]
    assert [d["name"] for d in told["difficulties"]] == ["4 bits", "8 bits"]
    assert told["settings"]["budgets"] == [1, 3, 9]
    assert "4 bits" in done.out
    assert "report.html" in done.out


def test_one_example_below_the_light_cone(run: Run, bits_checkpoint: Path) -> None:
    done = run("audit", bits_checkpoint, "--sizes", "64", "--count", "1", "--steps", "1")
    assert done.code == 0
    assert "NOT JUDGED" in done.out


def test_a_run_that_is_done_is_told_again(run: Run, tmp_path: Path) -> None:
    arguments = ["train", "prefix-sums", "--recipe", "fixed", "--steps", "1", "--batch", "2", "--out", tmp_path]
    assert run(*arguments).out == run(*arguments).out


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nonsense"], "--nonsense"),
        (["bake"], "bake"),
        (["tasks", "extra"], "extra"),
        (["train"], "Missing argument"),
        (["train", "prefix-sums", "--stepz", "3"], "--stepz"),
        (["train", "prefix-sums", "--steps", "0"], "--steps"),
        (["train", "prefix-sums", "--steps", "many"], "--steps"),
        (["train", "prefix-sums", "--batch", "-1"], "--batch"),
        (["train", "prefix-sums", "--seed", "-1"], "--seed"),
        (["train", "knitting"], "unknown task 'knitting'"),
        (["train", "mazes", "--recipe", "fixed"], "is for prefix-sums"),
        (["train", "prefix-sums", "--recipe", "slow"], "no recipe 'slow'"),
        (["train", "prefix-sums", "--recipe", "no/such.json"], "cannot read no/such.json"),
        (["train", "prefix-sums", "--precision", "3"], "3"),
        (["train", "prefix-sums", "--strategy", "luck"], "luck"),
        (["train", "prefix-sums", "--device", "abacus"], "device 'abacus'"),
        (["train", "prefix-sums", "--device", "meta"], "device 'meta'"),
        (["train", "prefix-sums", "--device", "cpu:0", "--devices", "2"], "--devices"),
        (["demo", "--seeds", "0"], "--seeds"),
        (["demo", "--count", "0"], "--count"),
        (["demo", "--longest", "3"], "--longest"),
        (["audit"], "--model"),
        (["audit", "no-such-model"], "no-such-model"),
        (["predict"], "Missing argument"),
        (["predict", "no-such-model"], "no-such-model"),
    ],
)
def test_wrong_options(refused: Refused, arguments: list[str], words: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(*arguments)
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sizes", "0"], "--sizes"),
        (["--sizes", "eight"], "--sizes"),
        (["--sizes", ""], "--sizes"),
        (["--sizes", "99999999999999999999"], "is impossible for prefix-sums"),
        (["--sizes", "8", "--steps", "0,4"], "--steps"),
        (["--sizes", "8", "--steps", "4.5"], "--steps"),
        (["--sizes", "8", "--steps", "99999999999999999999"], "steps"),
        (["--sizes", "8", "--count", "0"], "--count"),
        (["--sizes", "8", "--settle-rtol", "nan"], "--settle-rtol"),
        (["--sizes", "8", "--settle-rtol", "-1"], "--settle-rtol"),
        (["--model", "x.py:build"], "either"),
    ],
)
def test_impossible_audits(
    refused: Refused, bits_checkpoint: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    assert words in refused("audit", bits_checkpoint, "--count", "2", "--out", tmp_path / "a", *options)
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rtol", "nan"], "--rtol"),
        (["--rtol", "inf"], "rtol"),
        (["--rtol", "-1"], "--rtol"),
        (["--max-steps", "0"], "--max-steps"),
        (["--max-steps", "99999999999999999999"], "--max-steps"),
        (["--format", "poem"], "--format"),
        (["--format", "picture"], "--output"),
        (["--device", "abacus"], "abacus"),
        (["-"], None),
        (["no-such-file.txt"], "cannot read no-such-file.txt: No such file"),
        ([".", "--format", "json"], "cannot read .: Is a directory"),
    ],
)
def test_impossible_predictions(refused: Refused, bits_checkpoint: Path, options: list[str], words: str | None) -> None:
    line = refused("predict", bits_checkpoint, *options, stdin=b"" if words is None else b"1101\n")
    assert (words or "standard input: no bit string found") in line


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no bit string found"),
        (b"\n\n  \n", "no bit string found"),
        (b"1101\n10201\n", "line 2, column 3: '2' is not a bit"),
        (b"11 01\n", "line 1, column 3"),
        ("1101\n1１\n".encode(), "line 2, column 2"),
        (b"\x00\x01\x02", "is not a bit"),
        (b"\xff\xfe1\x000\x00", "byte 1 is not UTF-8"),
        (b"#####\n#S G#\n", "is not a bit"),
    ],
)
def test_bits_that_are_none(refused: Refused, bits_checkpoint: Path, tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "in.txt").write_bytes(data)
    line = refused("predict", bits_checkpoint, tmp_path / "in.txt", "--output", tmp_path / "out.txt")
    assert words in line or (data.startswith(b"#") and "no bit string" in line)
    assert str(tmp_path / "in.txt") in line
    assert files(tmp_path) == {"in.txt"}


def png(pixels: list[list[int]]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no maze found"),
        (b"#####\n#S G#\n####\n", "rectangular"),
        (b"#####\n#  G#\n#####\n", "no start"),
        (b"#####\n#S  #\n#####\n", "no goal"),
        (b"#####\n#SSG#\n#####\n", "second start"),
        (b"#####\n#S?G#\n#####\n", "line 2, column 3: '?'"),
        (b"#####\n#S#G#\n#####\n", "cannot be reached"),
        (MAZE + b"\n#####\n#S  #\n#####\n", "line 7 has no goal"),
        (b"\x89PNG\r\n\x1a\nbroken", "cannot be decoded"),
        (png([[0, 255, 0]]), "no start"),
        (png([[0, 128, 0]]), "has the colour"),
        (b"\x80\x81\x82", "not UTF-8"),
        ("#####\n#S→G#\n#####\n".encode(), "'→'"),
    ],
)
def test_mazes_that_are_none(refused: Refused, maze_checkpoint: Path, tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "in").write_bytes(data)
    assert words in refused("predict", maze_checkpoint, tmp_path / "in", "--output", tmp_path / "out.png")
    assert files(tmp_path) == {"in"}


def test_a_checkpoint_that_is_damaged(refused: Refused, bits_checkpoint: Path, tmp_path: Path) -> None:
    def spoilt(name: str, change: Callable[[bytes], bytes]) -> Path:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        shutil.copytree(bits_checkpoint, folder)
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return folder

    cases: list[tuple[Path, str]] = [
        (spoilt("model.safetensors", lambda data: data[:-10]), "truncated"),
        (spoilt("model.safetensors", lambda data: b""), "truncated"),
        (spoilt("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])), "sha256"),
        (spoilt("config.json", lambda data: data[:-20]), "truncated"),
        (spoilt("config.json", lambda data: b"[]"), "format None"),
        (spoilt("config.json", lambda data: data.replace(b'"format": 1', b'"format": 2')), "format 2"),
        (spoilt("config.json", lambda data: data.replace(b'"width": 6', b'"width": 7')), "inner"),
        (spoilt("config.json", lambda data: data.replace(b'"width": 6', b'"width": -6')), "model.recall.width"),
        (spoilt("config.json", lambda data: data.replace(b"prefix-sums", b"knitting")), "knitting"),
        (tmp_path, "config.json"),
    ]
    for folder, words in cases:
        for command in (["audit", folder, "--sizes", "4", "--count", "1"], ["predict", folder]):
            assert words in refused(*command, stdin=b"11\n")
    assert "config.json" in refused("predict", tmp_path / "0" / "losses.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[]", "object"),
        ('{"task": {"name": "prefix-sums"}, "steps": 3, "sizes": [4]}', "depth"),
        (
            '{"task": {"name": "prefix-sums"}, "steps": 3, "sizes": [4], "depth": {"kind": "fixed", "steps": 0}}',
            "steps",
        ),
        ('{"task": {"name": "mazes"}, "steps": 3, "sizes": [4], "depth": {"kind": "fixed", "steps": 1}}', "for mazes"),
        (
            '{"task": {"name": "prefix-sums"}, "steps": 3, "sizes": [0], "depth": {"kind": "fixed", "steps": 1}}',
            "size 0",
        ),
        (
            '{"task": {"name": "prefix-sums", "options": {"x": 1}}, "steps": 3, "sizes": [4], '
            '"depth": {"kind": "fixed", "steps": 1}}',
            "no option 'x'",
        ),
    ],
)
def test_recipes_that_are_none(refused: Refused, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.json").write_text(text)
    assert words in refused("train", "prefix-sums", "--recipe", tmp_path / "r.json", "--out", tmp_path / "run")
    assert files(tmp_path) <= {"r.json", "run/.lock"}


def test_places_that_cannot_be_written(refused: Refused, bits_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refused("predict", bits_checkpoint, "--output", tmp_path / "file" / "x.txt", stdin=b"11\n")
    assert "cannot write" in line
    assert "cannot write" in refused("predict", bits_checkpoint, "--output", tmp_path, stdin=b"11\n")
    assert "cannot write" in refused("train", "prefix-sums", "--steps", "1", "--out", tmp_path / "file")
    assert "cannot write" in refused("demo", "--train-steps", "1", "--out", tmp_path / "file")
    # Found before the work is done, not after it.
    hours = ["audit", bits_checkpoint, "--sizes", "1000000", "--count", "1000000"]
    assert "cannot write" in refused(*hours, "--out", tmp_path / "file" / "a")
    assert files(tmp_path) == {"file"}


def test_no_standard_input(
    bits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["homeostat", "predict", str(bits_checkpoint)])
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: standard input is closed; name a file\n"


def test_endless_input_is_refused(refused: Refused, bits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeostat.cli.options._MOST_BYTES", 10)
    assert "more than 10 bytes" in refused("predict", bits_checkpoint, stdin=b"1" * 11)


def test_names_that_no_encoding_knows(refused: Refused, bits_checkpoint: Path) -> None:
    assert "cannot read" in refused("predict", bits_checkpoint, "\udcff\udcfe.txt")


def test_too_little_memory(refused: Refused, bits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*args: Any, **options: Any) -> None:
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setattr("homeostat.cli.predict.answer_puzzles", hungry)
    assert refused("predict", bits_checkpoint, stdin=b"11\n") == "not enough memory: Unable to allocate 3 TiB"


def test_ctrl_c_is_one_line(run: Run, bits_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("homeostat.cli.predict.answer_puzzles", stop)
    done = run("predict", bits_checkpoint, stdin=b"11\n")
    assert (done.code, done.out, done.err) == (130, "", "error: interrupted\n")


def test_faults_of_our_own_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, bits_checkpoint: Path) -> None:
    def fault(*args: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("homeostat.cli.predict.answer_puzzles", fault)
    monkeypatch.setattr(sys, "argv", ["homeostat", "predict", str(bits_checkpoint)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"11\n")))
    with pytest.raises(RuntimeError, match="a bug"):
        main()
