"""IDX files: what is read, and every way in which one can be damaged."""

import gzip

import numpy as np
import pytest

from homeostat.errors import InputError
from homeostat.tasks.idx_files import read_idx


def idx(values: np.ndarray, kind: int = 8) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, kind, values.ndim]) + sizes + values.tobytes()


VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_reading(tmp_path, pack):
    path = tmp_path / "images"  # gzip is known by its content, not by the name
    path.write_bytes(pack(idx(VALUES)))
    assert np.array_equal(read_idx(path, 3), VALUES)


GOOD = idx(VALUES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", " is no IDX file: it does not begin with two zero bytes, a type and a number of sizes"),
        (b"\x89PNG and so on", " is no IDX file: it does not begin with two zero bytes, a type and a number of sizes"),
        (idx(VALUES, kind=0x0D), " holds values of type 0x0d; only unsigned bytes, type 0x08, are read"),
        (idx(VALUES[0]), " has 2 dimensions where 3 are needed; are images and labels mixed up?"),
        (GOOD[:10], " is truncated: 10 bytes, its header alone has 16"),
        (GOOD[:-1], " is truncated: 2 x 3 x 4 values need 24 bytes, it has 23"),
        (GOOD + b"\0", " goes on after its end: 2 x 3 x 4 values need 24 bytes, it has 25"),
        (idx(VALUES[:0]), " is empty: its sizes are 0 x 3 x 4"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_damage(tmp_path, data, message, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(data))
    with pytest.raises(InputError) as caught:
        read_idx(path, 3)
    assert str(caught.value) == f"{path}{message}"


@pytest.mark.parametrize("change", [lambda data: data[:-9], lambda data: data[:14] + b"\xff\xff" + data[16:]])
def test_damaged_gzip(tmp_path, change):
    path = tmp_path / "images.gz"
    path.write_bytes(change(gzip.compress(idx(VALUES))))
    with pytest.raises(InputError, match="cannot be unpacked, its gzip data is damaged"):
        read_idx(path, 3)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nothing: No such file or directory"):
        read_idx(tmp_path / "nothing", 1)
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_idx(tmp_path, 1)


def test_an_endless_file_is_not_swallowed(tmp_path, monkeypatch):
    monkeypatch.setattr("homeostat.tasks.idx_files._MOST_BYTES", 30)
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(InputError, match="is too large: more than 30 bytes"):
        read_idx(path, 3)
