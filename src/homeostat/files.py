"""Files are written whole or not at all.

A reader never sees half a file, and a full disk or a kill leaves the former version in place.
"""

import contextlib
import os
import tempfile
from pathlib import Path

from homeostat.errors import OutputError


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path` through a temporary file beside it, then rename.

    Raises:
        OutputError: the file cannot be written; what stood there before is untouched.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> write_bytes(folder / "deep" / "answer.txt", b"42").read_bytes()
        b'42'
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; a result is as readable as any other file of this user.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return path


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder that files can be written into, to find out before the work is done rather than after it.

    Raises:
        OutputError: it cannot be made, or nothing can be written there.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror or error}") from error
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all (see `write_bytes`)."""
    return write_bytes(path, text.encode("utf-8"))
