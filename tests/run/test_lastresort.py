"""The first and the last thing of an entry point: a process set up, and one line where it ends unforeseen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from captioner.errors import EXTRAS, BadInput, missing_extra
from captioner.run import lastresort


def run(script: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"from captioner.run import lastresort\n{script}", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


FAILS = "lastresort.run('tool', lambda: {}['a \\x1b[31m key'])"


def test_what_nobody_foresaw_is_one_line_that_says_it_is_a_bug() -> None:
    done = run(FAILS)
    assert (done.returncode, done.stdout) == (70, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("tool: This is a bug in captioner: KeyError at <string>:2: ")
    assert line.endswith("; run again with --debug to see where.")
    assert "\x1b" not in line


def test_a_name_that_the_system_refuses_is_no_bug() -> None:
    done = run("import os\nlastresort.run('tool', lambda: os.stat('x' * 300))")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tool: {'x' * 200} cannot be used (File name too long).\n"


def test_a_file_that_the_system_refuses_is_named() -> None:
    done = run("lastresort.run('tool', lambda: open('no/such/file'))")
    assert (done.returncode, done.stderr) == (2, "tool: no/such/file cannot be used (No such file or directory).\n")


def test_what_is_said_of_a_descriptor_names_no_file() -> None:
    done = run("import os\nlastresort.run('tool', lambda: os.stat(99))")
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr.startswith("tool: This is a bug in captioner: OSError")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("OSError(12, 'Cannot allocate memory')", "There is not enough memory"),
        ("ImportError('libx.so: failed to map segment from shared object')", "There is not enough memory"),
        ("MemoryError()", "There is not enough memory"),
        ('RuntimeError("can\'t start new thread")', "The system starts no more threads (ulimit -u)"),
    ],
)
def test_a_machine_that_has_no_more_to_give_is_no_bug(error: str, told: str) -> None:
    done = run(f"def command():\n    raise {error}\nlastresort.run('tool', command)")
    assert done.returncode == 2
    assert done.stderr.startswith(f"tool: {told}")


@pytest.mark.skipif(os.name == "nt", reason="a folder in use cannot be removed")
def test_a_folder_that_is_gone_is_told_first(tmp_path: Path) -> None:
    """oneMKL ends the process there by itself, whatever is asked."""
    here = f"import os\nos.chdir({str(tmp_path)!r})\nos.rmdir({str(tmp_path)!r})\n"
    done = run(here + "lastresort.run('tool', lambda: print('not reached'))")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tool: The folder that you are in has been removed: go to one that is there.\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
def test_output_that_is_full_is_no_bug() -> None:
    script = "def command():\n    with open('/dev/full', 'w') as full:\n        full.write('x')\n"
    done = run(script + "lastresort.run('tool', command)")
    assert (done.returncode, done.stderr) == (2, "tool: The output cannot be used (No space left on device).\n")


def leaving(end: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command that leaves a thread behind and ends so."""
    return run(
        f"""import atexit, sys, threading, time
from captioner.errors import BadInput
def command():
    thread = threading.Thread(target=time.sleep, args=[60], daemon=True)
    thread.start()
    lastresort.leave_behind([thread])
    print("begun")
    {end}
atexit.register(print, "Python ended it")
lastresort.run("tool", command)""",
        *words,
    )


@pytest.mark.parametrize(
    ("end", "status", "told"),
    [
        ("print('done')", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("raise BadInput('No.')", 2, "tool: No.\n"),
        ("raise KeyboardInterrupt", 130, "\ntool: Stopped.\n"),
    ],
)
def test_a_thread_that_is_left_behind_cannot_abort_the_process(end: str, status: int, told: str) -> None:
    """It would be stopped after the functions of atexit have been called."""
    done = leaving(end)
    assert (done.returncode, done.stderr) == (status, told)
    assert done.stdout.splitlines()[0] == "begun"
    assert "Python ended it" not in done.stdout


def test_debug_tells_of_an_error_while_a_thread_runs() -> None:
    done = leaving("{}['a key']", "--debug")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("KeyError: 'a key'")


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    done = run(FAILS, "verb", "--debug", "x")
    assert done.stderr.startswith("Traceback")
    taken = run("import sys\nlastresort.run('tool', lambda: print(sys.argv[1:]))", "verb", "--debug", "x")
    assert taken.stdout == "['verb', 'x']\n"
    kept = run("import sys\nlastresort.run('tool', lambda: print(sys.argv[1:]))", "--", "--debug")
    assert kept.stdout == "['--', '--debug']\n"


def test_debug_shows_what_a_model_failed_with() -> None:
    """`captioner.run.batch` notes the traceback of a picture that a model failed on, and the run goes on."""
    script = """
import logging
def command():
    try:
        raise RuntimeError("size \\x1b[31m mismatch")
    except RuntimeError as error:
        logging.getLogger("captioner.run.batch").debug("the model failed on %s", "a.png", exc_info=error)
lastresort.run("tool", command)
"""
    assert run(script).stderr == ""
    shown = run(script, "--debug").stderr
    assert shown.startswith("captioner.run.batch: the model failed on a.png\nTraceback")
    assert "in command" in shown
    assert "\x1b" not in shown


def test_what_the_user_can_put_right_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise BadInput("Something\n  is wrong.")

    with pytest.raises(SystemExit) as ended:
        lastresort.run("tool", command)
    assert (ended.value.code, capsys.readouterr().err) == (2, "tool: Something is wrong.\n")


def test_a_setting_of_the_data_is_told_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise BadInput("split would change nothing: say which with text_column.")

    with pytest.raises(SystemExit):
        lastresort.run("tool", command)
    assert capsys.readouterr().err == "tool: --split would change nothing: say which with --text-column.\n"


def test_ctrl_c_during_imports(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)\n")
    script = "from captioner.run import lastresort\nlastresort.run('tool', lambda: __import__('slow'))"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{os.getcwd()}{os.pathsep}{tmp_path}"},
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "\ntool: Stopped.\n")


def test_an_import_that_fails_because_of_ctrl_c_is_a_stop_too() -> None:
    script = """
def command():
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise ImportError("numpy failed to import")
lastresort.run("tool", command)
"""
    assert run(script).returncode == 130


def policy(load: float, **environment: str) -> str:
    """What is said about waiting threads on a machine of such a load."""
    said = "print(*(os.environ.get(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"
    busy = f"from captioner import openmp\nopenmp._others_running = lambda: {load}"
    script = f"import os\n{busy}\nlastresort.run('tool', lambda: {said})"
    return run(script, **environment).stdout.strip()


def test_waiting_threads_sleep_or_spin_briefly_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    assert policy(load=10_000) == "passive None"
    assert policy(load=0) == "None 10000"
    assert policy(load=0, OMP_WAIT_POLICY="active") == "active None"
    assert policy(load=10_000, GOMP_SPINCOUNT="9") == "None 9"
    untouched = run("import os, captioner\nprint(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))")
    assert untouched.stdout == "None None\n"


def test_streams_that_hold_no_unicode_or_are_closed() -> None:
    assert run("lastresort.run('tool', lambda: print('é → 猫'))", PYTHONIOENCODING="ascii").stdout == (
        "\\xe9 \\u2192 \\u732b\n"
    )
    script = """
import sys
from captioner.run import lastresort
lastresort.run('tool', lambda: (print('message', file=sys.stderr), print(repr(sys.stdin.buffer.read()))))
"""
    file = f'exec {sys.executable} -c "$SCRIPT" 2>&- <&-'
    done = subprocess.run(["bash", "-c", file], capture_output=True, text=True, env={**os.environ, "SCRIPT": script})
    assert (done.returncode, done.stdout) == (0, "b''\n")


def test_memory_of_large_pictures_goes_back_to_the_system() -> None:
    shows = "from PIL import Image\n    print(Image.core.get_block_size())"
    assert run(f"def command():\n    {shows}\nlastresort.run('tool', command)").stdout == f"{64 << 20}\n"


def test_what_pillow_remarks_about_an_odd_picture_is_not_printed() -> None:
    script = (
        "import io\n"
        "def command():\n"
        "    from PIL import Image\n"
        "    from captioner.images import open_image\n"
        "    into = io.BytesIO()\n"
        "    Image.new('RGB', (4, 4)).save(into, 'JPEG', exif=b'Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x09\\0')\n"
        "    print(open_image(into.getvalue()).size)\n"
        "lastresort.run('tool', command)"
    )
    shown = run(script)
    assert (shown.stdout, shown.stderr) == ("(4, 4)\n", "")


def test_ctrl_c_before_the_command_is_reached_is_no_traceback() -> None:
    """A script's own imports run before `lastresort.run`."""
    done = run("raise KeyboardInterrupt")
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr.split() == ["Stopped."]


@pytest.mark.parametrize("package", ["faiss", "peft", "matplotlib", "fastapi"])
def test_a_package_that_was_left_out_is_named_with_its_extra(package: str) -> None:
    """None in sys.modules: to Python's import there is no such package."""
    done = run(f"import sys\nsys.modules[{package!r}] = None\nlastresort.run('tool', lambda: __import__({package!r}))")
    assert done.returncode == 2
    wanted = f'pip install "captioner[{EXTRAS[package]}]"'
    assert done.stderr == f"tool: This needs {package}, which is not installed: {wanted}\n"


@pytest.mark.parametrize(
    ("program", "package", "extra"),
    [
        ("captioner", "datasets", "knn"),
        ("python -m eval", "datasets", "eval"),
        ("python -m eval", "diffusers", "synth"),
        ("python -m training.blip", "datasets", "train"),
        ("python -m training.data", "matplotlib", "train"),
    ],
)
def test_the_one_line_brings_all_that_a_program_needs(program: str, package: str, extra: str) -> None:
    """And not one package after the other."""
    missing = missing_extra(ModuleNotFoundError(name=package), program)
    assert str(missing).endswith(f'pip install "captioner[{extra}]"')
