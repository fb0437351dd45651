"""Text: windows of the two stretches, the character that comes next, and files that are no text."""

import math
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from homeostat.errors import InputError
from homeostat.tasks import Text
from homeostat.tasks import text as module


@pytest.fixture(autouse=True)
def _fresh():
    module._stretch.cache_clear()


def numbered(tmp_path: Path, length: int = 1000) -> Text:
    """A text in which every pair of characters comes once, so that a window tells where it stands."""
    written = "".join(chr(33 + i // 90) + chr(33 + i % 90) for i in range(length))[:length]
    (tmp_path / "text.txt").write_text(written, encoding="utf-8")
    return Text(file=str(tmp_path / "text.txt"))


def places(task: Text, windows: torch.Tensor) -> list[int]:
    whole = Path(task.file or "").read_bytes()
    return [whole.index(bytes(window.tolist())) for window in windows]


@pytest.mark.parametrize(("split", "stretch"), [("train", range(900)), ("test", range(900, 1000))])
def test_windows_lie_in_their_stretch_and_the_targets_come_next(tmp_path: Path, split, stretch: range):
    task, begins = numbered(tmp_path), set()
    whole = Path(task.file or "").read_bytes()
    for seed in range(40):
        inputs, targets = task.sample(8, 10, split=split, seed=seed)
        assert (inputs.dtype, targets.dtype, tuple(inputs.shape)) == (torch.int64, torch.int64, (10, 8))
        for begin, window, after in zip(places(task, inputs), inputs.tolist(), targets.tolist(), strict=True):
            assert bytes(window) == whole[begin : begin + 8]
            assert bytes(after) == whole[begin + 1 : begin + 9]
            assert begin in stretch
            assert begin + 8 in stretch
            begins.add(begin % 8)
    assert begins == set(range(8))  # windows begin anywhere


def test_windows_of_one_seed_do_not_overlap_until_all_have_come(tmp_path: Path):
    task = numbered(tmp_path)
    begins = sorted(places(task, task.sample(10, 89, split="train", seed=2).inputs))
    assert begins == list(range(begins[0], begins[0] + 890, 10))
    more = task.sample(10, 150, split="train", seed=2).inputs
    assert torch.equal(more[:89], task.sample(10, 89, split="train", seed=2).inputs)
    assert not torch.equal(more[:61], more[89:])


def test_the_text_of_the_package_is_what_it_says():
    data = (files("homeostat.tasks") / "texts" / "alice.txt").read_bytes()
    assert len(data) == 59_598
    assert data.isascii()
    assert b"\r" not in data
    assert data.split()[:5] == [b"CHAPTER", b"I", b"Down", b"the", b"Rabbit-Hole"]
    assert (files("homeostat.tasks") / "texts" / "ORIGIN.md").is_file()


def test_the_loss_is_in_nats_a_character():
    """Against the entropy of the characters: the loss of foretelling them by their frequencies alone."""
    _, targets = Text().sample(64, 50, split="train", seed=0)
    counts = Counter(targets.flatten().tolist())
    shares = {symbol: count / targets.numel() for symbol, count in counts.items()}
    logits = torch.full((256,), -1e9)
    for symbol, part in shares.items():
        logits[symbol] = math.log(part)
    outputs = logits[None, :, None].expand(50, 256, 64)
    entropy = -sum(part * math.log(part) for part in shares.values())
    assert float(Text().loss(outputs, targets).mean()) == pytest.approx(entropy, rel=1e-4)
    most = counts.most_common(1)[0][1] / targets.numel()
    assert float(Text().symbols(outputs, targets).mean()) == pytest.approx(most, rel=1e-5)


def test_files_that_are_no_text(tmp_path: Path):
    def message(data: bytes | None, size: int = 4) -> str:
        module._stretch.cache_clear()
        path = tmp_path / "text.txt"
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            Text(file=str(path)).sample(size, 1, split="test", seed=0)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "text.txt: No such file" in message(None)
    assert "text.txt is empty" in message(b" \n")
    assert "is not text in UTF-8: byte 3 cannot be read" in message(b"ab\xff" + b"c" * 100)
    assert "has a test stretch of 4 characters, too short for windows of 4" in message(b"a" * 49)
    with pytest.raises(InputError, match="cannot read"):
        Text(file=str(tmp_path)).sample(4, 1, split="test", seed=0)


def test_letters_of_several_bytes_are_several_characters(tmp_path: Path):
    (tmp_path / "text.txt").write_text("é" * 100, encoding="utf-8")
    inputs, targets = Text(file=str(tmp_path / "text.txt")).sample(4, 1, split="train", seed=0)
    assert set(inputs.flatten().tolist()) == {0xC3, 0xA9}
    assert bool((inputs != targets).all())


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({"file": ""}, {}, "file '' is not the path of a text"),
        ({}, {"size": 0}, "size 0 is impossible for text: 1 to 4,096 characters"),
        ({}, {"size": 5000}, "size 5000 is impossible"),
        ({}, {"count": 0}, "count 0 is too small"),
        ({}, {"count": 2**23}, "count 8388608 is too large"),
        ({}, {"split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_impossible_requests(options: dict, arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        Text(**options).sample(**{"size": 4, "count": 1, "split": "train", "seed": 0, **arguments})
