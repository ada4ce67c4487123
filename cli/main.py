"""``dcae-cache``: the commands, and the one place where an error becomes a line and an exit code.

0 done, 1 failed, 2 usage, 3 verify found a problem, 130 interrupted and resumable. DCAE_CACHE_TRACEBACK=1 shows where
an error came from.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Annotated, NoReturn

import typer

from dcae_cache.errors import DCAECacheError, LeaderError, UsageError
from dcae_cache.interruption import Interruption
from dcae_cache.version import __version__

from .annotate import annotate
from .compare import compare
from .decode import decode
from .encode import EncodeCommand, encode
from .exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from .export import export
from .filter_cache import filter_cache
from .flags import Command
from .import_cache import import_cache
from .info import info
from .merge import merge
from .models import models
from .output import say, show
from .pull import pull
from .push import push
from .split import split
from .verify import verify

_NO_MEMORY = (
    *("cannot allocate memory", "can't allocate memory", "not enough memory", "out of memory"),
    *("failed to map segment", "can't start new thread", "unable to mmap", "cannot create new thread"),
)

app = typer.Typer(
    name="dcae-cache",
    help="Turn an image dataset into DC-AE latents once, before weeks of training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(cls=EncodeCommand)(encode)
app.command(cls=Command)(verify)
app.command(cls=Command)(compare)
app.command(cls=Command)(info)
app.command(cls=Command)(decode)
app.command(cls=Command)(export)
app.command("import", cls=Command)(import_cache)
app.command(cls=Command)(merge)
app.command("filter", cls=Command)(filter_cache)
app.command(cls=Command)(split)
app.command(cls=Command)(annotate)
app.command(cls=Command)(models)
app.command(cls=Command)(push)
app.command(cls=Command)(pull)


def _show_version(wanted: bool) -> None:
    if wanted:
        show(f"dcae-cache {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options that come before a command."""


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        with Interruption([signal.SIGINT, signal.SIGTERM], then=_stop_at_once):
            code = app(prog_name="dcae-cache", standalone_mode=True)
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("DCAE_CACHE_TRACEBACK"):
            raise
        code = _explained(error)
    sys.exit(code)


def _explained(error: BaseException) -> int:
    """The exit code of an error, after a line about it. Raises the error where no line is known for it."""
    if isinstance(error, KeyboardInterrupt):
        say("Interrupted.")
        return EXIT_INTERRUPTED
    if isinstance(error, DCAECacheError):
        if not isinstance(error, LeaderError):  # which says it itself
            say(f"error: {error}")
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    if isinstance(error, BrokenPipeError):  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    if isinstance(error, MemoryError | OSError | RuntimeError | ImportError) and _out_of_memory(error):
        say(
            "error: There is not enough memory, or a limit (ulimit -v) allows no more. What was finished is kept. "
            "Lower --batch-size or --workers, or allow more memory, and run the same command again."
        )
        return EXIT_FAILED
    raise error


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in the words of Python, the system, the loader of libraries, threads, or torch."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error).lower()
    return any(words in text for words in _NO_MEMORY)


def _stop_at_once() -> NoReturn:
    """What a second SIGTERM or Ctrl-C does; the first lets a run stop in good order."""
    os.write(2, b"Stopped at once. Finished parts are kept: run the same command again to go on.\n")
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
