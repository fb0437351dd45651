"""The command line: one file for each command."""

import os
import sys
from typing import Any

import torch
import typer
from lightning_fabric.utilities import rank_zero_only
from rich.text import Text

from homeostat.cli import (  # noqa: F401 - each adds its command
    audit,
    calibrate,
    check_model,
    compare,
    demo,
    predict,
    probe,
    serve,
    study,
    tasks,
    train,
)
from homeostat.cli.options import APP, ERR
from homeostat.errors import HomeostatError


def main() -> None:
    """Entry point: what goes wrong is one line on standard error, and exit code 2."""
    try:
        code = APP(standalone_mode=False)
        sys.stdout.flush()
    except HomeostatError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output has gone, as in `homeostat predict … | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, torch.OutOfMemoryError) as error:
        _fail(f"not enough memory: {error}")
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", code=130)
    except Exception as error:
        # Wrong options: typer's own class for these differs between its versions.
        describe = getattr(error, "format_message", None)
        if describe is None and _rank():
            _fail(f"process {_rank()}: {type(error).__name__}: {error}", quiet=False)
        if describe is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(describe())
            sys.exit(2)
        _fail(f"{describe().rstrip('.')}; see {_command(error)} --help")
    else:
        if code == 130:
            _fail("interrupted", code=130)
        sys.exit(code)


def _command(error: Any) -> str:
    """The command whose options were wrong, as in `homeostat train`."""
    context = getattr(error, "ctx", None)
    name = None if context is None or context.parent is None else context.info_name
    return f"homeostat {name}" if name else "homeostat"


def _rank() -> int:
    """Which of several training processes this is; 0 is the first one, or the only one."""
    return getattr(rank_zero_only, "rank", 0)


def _fail(message: str, code: int = 2, quiet: bool | None = None) -> Any:
    """Say what is wrong and leave. Of several processes that find the same, the first one speaks."""
    if _rank() > 0 if quiet is None else quiet:
        sys.exit(code)
    # A name of a file may hold bytes that no encoding knows.
    line = " ".join(message.encode(errors="backslashreplace").decode().split())
    ERR.print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True)
    sys.exit(code)
