"""The first and the last thing every entry point does: `captioner`, `python -m training.…`, `python -m eval`.

First the process is set up, before torch is imported; last, what nobody foresaw becomes one line that says it is a
bug. `--debug` anywhere on the line shows the traceback instead, and those of pictures that a model failed on. `import
captioner` does none of this.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import NoReturn

from captioner import memory, openmp
from captioner.errors import BadInput, CaptionerError, missing_extra, printable
from captioner.run import streams
from captioner.run.flags import spelled

DEBUG = "--debug"
REFUSALS = (
    *(errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EMFILE, errno.ENFILE),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE),
)
"""What the system says of a name that it does not let us look at, or of a disk that is full or fails: no bug."""
NO_MEMORY = "There is not enough memory: end other programs, or ask for less (a smaller model, batch or picture)."
NO_THREADS = "The system starts no more threads (ulimit -u): end other programs, or raise the limit."
NO_FOLDER = "The folder that you are in has been removed: go to one that is there."

_unfinished: list[threading.Thread] = []


def _stop_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a script's own imports still run, before `run` is reached: one word, no traceback."""
    if _interrupted(error):
        print("\nStopped.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _stop_quietly


def run(name: str, command: Callable[[], object]) -> None:
    """Run a whole command (its imports too: let `command` do them), and leave with its exit status.

    Example, as the last lines of a script whose heavy imports are inside `main`:

        if __name__ == "__main__":
            lastresort.run("python -m training.blip", main)
    """
    prepare()
    debug = _take_debug(sys.argv)
    if debug:
        _show_notes()
    try:
        if _is_nowhere():
            raise BadInput(NO_FOLDER)
        _complete(command)
    except CaptionerError as error:
        leave(name, spelled(" ".join(str(error).split())), 2)  # a library's own words may have many lines
    except KeyboardInterrupt as stopped:
        leave(name, str(stopped) or "Stopped.", 130)
    except Exception as error:
        if _interrupted(error):
            leave(name, "Stopped.", 130)
        if (missing := missing_extra(error, name)) is not None:
            leave(name, str(missing), 2)
        if debug:
            raise
        if isinstance(error, BrokenPipeError) and streams.is_unread():  # `| head` has seen enough
            sys.exit(1)
        if (reason := _refusal(error)) is not None:
            leave(name, reason, 2)
        leave(name, f"This is a bug in captioner: {describe(error)}; run again with {DEBUG} to see where.", 70)
    finally:
        streams.settle()
        if any(thread.is_alive() for thread in _unfinished):
            _end_at_once(sys.exc_info()[1])


def _complete(command: Callable[[], object]) -> None:
    """Run it, and bring out what it printed, also where it leaves by itself: as it ends, Python would not tell."""
    try:
        command()
    except SystemExit as left:
        if not left.code:
            sys.stdout.flush()
        raise
    sys.stdout.flush()


def _is_nowhere() -> bool:
    """Whether the folder that relative names begin in is gone. Not even the mathematics library can be loaded then."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    except OSError:  # one above it may not be looked into
        pass
    return False


def _refusal(error: Exception) -> str | None:
    """What the system refused, if that is what ended the command."""
    if memory.ran_out(error):
        return NO_MEMORY
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return NO_THREADS
    if isinstance(error, OSError):
        is_named = not isinstance(error.filename, int | None)  # of an open file that is its number
        if error.errno in REFUSALS or (error.strerror and is_named):
            what = os.fsdecode(error.filename)[:200] if is_named else "The output"
            return f"{what} cannot be used ({error.strerror})."
    return None


def leave_behind(threads: Iterable[threading.Thread]) -> None:
    """Threads that `run` need not wait for. Those of them that still run are not stopped by Python as the process ends:
    where one is inside a library written in C++, as when torch is imported, that aborts the process."""
    _unfinished.extend(threads)


def _end_at_once(error: BaseException | None) -> NoReturn:
    """End as Python would for this error, without what it does last."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # none, full or closed
            stream.flush()
    os._exit(status)


def prepare() -> None:
    """Set up the process. Nothing that the user has said is overridden."""
    os.environ.update(openmp.settings())
    # Python looks for unreachable objects whenever there are 700 more than before. So many are made as torch and
    # transformers are imported that this took a twentieth of the time of one picture.
    gc.set_threshold(50_000)
    if "MALLOC_ARENA_MAX" not in os.environ:
        memory.share_heap()
    # Pillow takes memory in blocks of 16 MiB, which the C library keeps when they are freed; those of 64 go back to the
    # system. 24 photographs of 50 megapixels took 2.4 GB at most, and take 1.1. Read when Pillow is imported.
    os.environ.setdefault("PILLOW_BLOCK_SIZE", "64m")
    # What Pillow remarks about an odd picture helps nobody here: it opens, or one sentence says why it does not.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    streams.prepare()


def describe(error: BaseException) -> str:
    """An error in one line: its kind and its own first words, and the line of code that raised it."""
    words = " ".join(str(error).split())
    *_, frame = traceback.extract_tb(error.__traceback__) or [None]
    where = f" at {os.path.basename(frame.filename)}:{frame.lineno}" if frame else ""
    return f"{type(error).__name__}{where}{': ' if words else ''}{words[:200]}"


def leave(name: str, message: str, status: int) -> None:
    """End the process with one line on standard error."""
    if status == 130:
        print(file=sys.stderr)  # the terminal shows ^C
    print(printable(f"{name}: {message}"), file=sys.stderr)
    sys.exit(status)


class _Printable(logging.Formatter):
    """Tracebacks, without what a stranger's words in them could do to a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).splitlines()))


def _show_notes() -> None:
    """What modules note for whoever looks for a fault, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(name)s: %(message)s"))
    logging.getLogger("captioner").addHandler(handler)
    logging.getLogger("captioner").setLevel(logging.DEBUG)


def _interrupted(error: BaseException | None) -> bool:
    """Did Ctrl-C cause it? An import that is interrupted may fail with an error of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _take_debug(words: list[str]) -> bool:
    """Is --debug on the command line? It is taken from there, so that it may stand anywhere."""
    options = words[: words.index("--")] if "--" in words else words
    if DEBUG not in options:
        return False
    words.remove(DEBUG)
    return True
