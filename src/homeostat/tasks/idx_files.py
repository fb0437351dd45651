"""IDX files, the format of MNIST: a magic number, the sizes, then the bytes; gzip is undone on the way.

Only unsigned bytes are read, which is what images and labels are stored as. The format is described on the page of
the MNIST database (LeCun, Cortes, Burges).
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import InputError

_UNSIGNED_BYTE = 8
_GZIP = b"\x1f\x8b"
_MOST_BYTES = 2**30
"""Largest file that is read, unpacked: a small gzip file can hold an endless one."""


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes with so many dimensions.

    Raises:
        InputError: a file that cannot be read or unpacked, is no IDX file, holds another type or another number of
            dimensions, is truncated, or goes on after its end.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels"
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        >>> read_idx(path, 1)
        array([7, 2, 1], dtype=uint8)
    """
    data = _unpacked(path)
    if len(data) < 4 or data[:2] != b"\0\0":
        raise InputError(f"{path} is no IDX file: it does not begin with two zero bytes, a type and a number of sizes")
    if data[2] != _UNSIGNED_BYTE:
        raise InputError(f"{path} holds values of type 0x{data[2]:02x}; only unsigned bytes, type 0x08, are read")
    if data[3] != dimensions:
        raise InputError(
            f"{path} has {data[3]} dimensions where {dimensions} are needed; are images and labels mixed up?"
        )
    header = 4 + 4 * dimensions
    if len(data) < header:
        raise InputError(f"{path} is truncated: {len(data)} bytes, its header alone has {header}")
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4))
    needed = math.prod(shape)
    if len(data) - header != needed:
        what = "is truncated" if len(data) - header < needed else "goes on after its end"
        sizes = " x ".join(map(str, shape))
        raise InputError(f"{path} {what}: {sizes} values need {needed:,} bytes, it has {len(data) - header:,}")
    if needed == 0:
        raise InputError(f"{path} is empty: its sizes are {' x '.join(map(str, shape))}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _unpacked(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            packed = stream.read(2) == _GZIP
        with gzip.open(path) if packed else open(path, "rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} cannot be unpacked, its gzip data is damaged: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path} is too large: more than {_MOST_BYTES:,} bytes")
    return data
