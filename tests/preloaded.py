"""Commands without the seconds in which each of them would import torch and transformers anew.

A process that has imported the packages of others, and nothing of this project, forks for each command that it is
asked for, until the tests are over. The command is the real entry point in a process of its own, with its own folder,
environment, standard streams and exit status, and imports this project's modules itself. A file in the place of
`python` or `captioner` asks for it, so that a shell finds one where it looks for the other. Ctrl-C and SIGTERM are
passed on, and a command ends with whoever asked.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers.modeling_utils",
    "transformers.processing_utils",
    "transformers.trainer",
    "pandas",
    "pyarrow.parquet",
    "faiss",
    "datasets",
    "accelerate",
    "matplotlib.figure",
)

# What the packages read as they are imported: a command that has another starts anew.
READ_AT_IMPORT = (
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_"),
    *("TORCH_LOGS", "TORCH_COMPILE", "OMP_", "MKL_", "MPL", "XDG_", "HOME"),
)

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

words = {words!r} + sys.argv[1:]
if {{name: value for name, value in os.environ.items() if name.startswith({names!r})}} != {settings!r}:
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    request = [words, os.getcwd(), dict(os.environ)]
    server.sendall(json.dumps(request).encode() + b"\\n")
    answers = server.makefile()
    process = int(answers.readline())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(process, number))
    status = int(answers.readline())
sys.exit(status if status >= 0 else 128 - status)
"""


def can_fork() -> bool:
    """Elsewhere than on Linux what is loaded need not survive a fork, and what a GPU's driver keeps never does."""
    import torch

    return sys.platform == "linux" and not torch.cuda.is_available()


def preloaded(folder: Path, tests: int) -> Path:
    """The folder of a `captioner` and a `python` for whoever has the settings of this process, made by the first who
    asks. They work as long as the process of the tests lives."""
    import fcntl  # which Windows has not

    bin_folder = folder / "bin"
    with open(folder / "preloaded.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if bin_folder.exists():
            return bin_folder
        address = str(folder / "preloaded.socket")
        command = [sys.executable, __file__, address, str(tests)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # a user would read what an import says
        bin_folder.mkdir()
        settings = {name: value for name, value in os.environ.items() if name.startswith(READ_AT_IMPORT)}
        for name, words in (("python", []), ("captioner", [str(Path(sys.executable).parent / "captioner")])):
            client = CLIENT.format(
                python=sys.executable, address=address, words=words, names=READ_AT_IMPORT, settings=settings
            )
            (bin_folder / name).write_text(client)
            (bin_folder / name).chmod(0o755)
    return bin_folder


def serve(address: str, tests: int) -> list[str]:
    """Fork for each request. Returns in the processes that are to become a command: its words."""
    for package in PACKAGES:
        importlib.import_module(package)
    # pyarrow has a thread by then, which only waits.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    gc.collect()
    gc.freeze()  # a command that collects garbage would copy all of it
    over = os.pidfd_open(tests)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        if os.fork():
            os._exit(0)  # whoever waits for this one may ask now
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        while True:
            if over in select.select([listener, over], [], [])[0]:
                os._exit(0)
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
            while ended():
                pass
    return command(connection)


def ended() -> bool:
    """Has one of the processes ended that were forked? Its times count then."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def command(connection: socket.socket) -> list[str]:
    """Fork once more: one becomes the command, the other tells how it ended, and ends it if nobody waits for it."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    words, folder, environment = json.loads(connection.makefile(encoding="utf-8").readline())
    child = os.fork()
    if child:
        connection.sendall(f"{child}\n".encode())
        for stream in (0, 1, 2, *streams):
            os.close(stream)
        finished = os.pidfd_open(child)
        if finished not in select.select([finished, connection], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        connection.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
        os._exit(0)
    connection.close()
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()  # or every command would draw the same
    importlib.import_module("numpy").random.seed()
    return words


def become(words: list[str]) -> int:
    """Run a script, a module after -m or code after -c, as Python does. Returns its exit status."""
    try:
        if words[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *words[2:]], os.getcwd()
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as stopped:
        if not isinstance(stopped.code, str):
            return stopped.code or 0
        print(stopped.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


if __name__ == "__main__":
    words = serve(sys.argv[1], int(sys.argv[2]))
    status = become(words)
    threading._shutdown()  # waits for them
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)  # to end as Python does, object after object, would copy all that is shared, in a second
