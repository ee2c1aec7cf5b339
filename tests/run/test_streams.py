"""Standard streams that are closed or full: what is told may be lost, what is a result is not taken for shown."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from captioner.run import streams

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
POSIX = pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")


def run(
    command: str, streams: str, folder: Path | None = None, unbuffered: str = ""
) -> subprocess.CompletedProcess[str]:
    """A command of ours whose body is this, begun by a shell with these streams."""
    script = (
        "import os, sys\nfrom captioner.run import lastresort, streams\nfrom captioner.sinks import Stdout, to_json\n"
        "def command():\n"
    )
    script += "".join(f"    {line}\n" for line in command.splitlines()) + "lastresort.run('tool', command)"
    line = f'exec {sys.executable} -c "$SCRIPT" {streams}'
    environment = {**os.environ, "SCRIPT": script, "PYTHONUNBUFFERED": unbuffered}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, cwd=folder)


@FULL
def test_a_run_goes_on_where_nobody_can_be_told(tmp_path: Path) -> None:
    done = run(
        "for _ in range(9):\n    print('step', file=sys.stderr, flush=True)\nopen('out', 'w').write('all')",
        "2>/dev/full",
        tmp_path,
    )
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == "all"


@POSIX
@pytest.mark.parametrize(
    "result", ["print('x')", "import typer; typer.echo('x')", "sys.stdout.buffer", "Stdout(to_json)"]
)
def test_what_a_closed_standard_output_does_not_show_is_no_success(result: str) -> None:
    done = run(result, ">&-")
    assert done.returncode == 2
    assert done.stderr.startswith("tool: Standard output is closed")


@POSIX
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library in C prints would stand in it."""
    done = run(
        "with open('out', 'w') as out:\n    assert out.fileno() > 2\n    os.write(1, b'noise')",
        "<&- >&- 2>&-",
        tmp_path,
    )
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == ""


@FULL
@pytest.mark.parametrize("printed", ["print('x')", "streams.tell('x')"])
@pytest.mark.parametrize("end", ["", "; sys.exit()"])
def test_what_a_full_disk_did_not_take_is_told_in_the_end(tmp_path: Path, printed: str, end: str) -> None:
    done = run(f"{printed}\nopen('out', 'w').write('all'){end}", ">/dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (2, "tool: The output cannot be used (No space left on device).\n")
    assert (tmp_path / "out").read_text() == "all"


@FULL
@pytest.mark.parametrize("told", ["streams.tell('x')", "import argparse; argparse.ArgumentParser().print_help()"])
def test_it_is_told_also_where_nothing_is_buffered(tmp_path: Path, told: str) -> None:
    done = run(f"{told}\nopen('out', 'w').write('all')", ">/dev/full", tmp_path, unbuffered="1")
    assert (done.returncode, done.stderr) == (2, "tool: The output cannot be used (No space left on device).\n")
    assert (tmp_path / "out").read_text() == "all"


@POSIX
def test_a_reader_that_has_seen_enough_is_no_bug() -> None:
    done = run("while True:\n    print('x' * 1000)", "| head -1")
    assert (done.stdout, done.stderr) == ("x" * 1000 + "\n", "")
    for end in ("", "; sys.exit()"):
        done = run(f"os.read(0, 1); print('x'){end}", "< <(sleep 0.1) | true")
        assert done.stderr == ""


@POSIX
def test_a_pipe_that_breaks_elsewhere_is_told() -> None:
    done = run("reader, writer = os.pipe()\nos.close(reader)\nos.write(writer, b'x')", "")
    assert done.returncode == 70
    assert "BrokenPipeError" in done.stderr


@POSIX
def test_a_message_that_nobody_reads_ends_no_work(tmp_path: Path) -> None:
    run("streams.tell('x')\nopen('out', 'w').write('all')", ">&-", tmp_path)
    assert (tmp_path / "out").read_text() == "all"


@POSIX
def test_a_full_stream_that_does_not_wait_is_waited_for() -> None:
    """Who shares it may have set it so; asked again and again, it would take a whole processor."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(reader, "rb") as told, io.FileIO(writer, "wb") as stream:
        while stream.write(b"x" * 4096) is not None:
            pass
        drain = threading.Thread(target=told.read1, args=(1 << 20,))
        drain.start()
        assert streams.Unheard(stream).write(b"heard") == 5
        drain.join()


def test_messages_go_to_the_stream_that_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of Windows takes UTF-8 of its own stream alone; as a plain file it shows other letters."""

    class Window(io.RawIOBase):
        shown = b""

        def writable(self) -> bool:
            return True

        def write(self, content) -> int:
            self.shown += bytes(content)
            return len(content)

    for stream in (window := Window(), io.BufferedWriter(another := Window())):
        usual = io.TextIOWrapper(stream, "utf-8", write_through=True)
        monkeypatch.setattr(sys, "stderr", usual)
        monkeypatch.setattr(sys, "__stderr__", usual)
        streams.prepare()
        print("é", file=sys.stderr)
    assert window.shown == another.shown == f"é{os.linesep}".encode()
