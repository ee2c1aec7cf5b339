"""Many pictures: order, bad ones, batch sizes, running out of memory, and real processes killed midway."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from captioner.cli.main import app
from captioner.errors import BadCheckpoint, BadInput, Stopped
from captioner.images import Source, ahead
from captioner.run import batch
from captioner.run.batch import run, run_inputs
from captioner.run.progress import Lines, Pace, Silent, Tally, Total
from captioner.sinks import FileSink, Row, Sidecars
from captioner.sinks.sidecars import journal_path


def pictures(folder: Path, count: int) -> list[Source]:
    """Pictures of different colours, each carrying a prompt of its own."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", f"prompt {number}\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: {number}")
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number:03}.png", pnginfo=info)
    return [Source(str(path), path=path) for path in sorted(folder.iterdir())]


@dataclass
class Colours:
    """Names each picture by its colour; notes how many came at a time."""

    most: int = 1000
    error: type[Exception] = MemoryError
    together: int = 1
    sizes: list[int] = field(default_factory=list)

    def look(self, source: Source) -> Image.Image | Row:
        return source.open()

    def batch_size(self) -> int:
        return 8

    def at_once(self) -> int:
        return self.together

    def answer(self, looks: list[Image.Image]) -> list[Row]:
        if len(looks) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 2 GiB.")
        self.sizes.append(len(looks))
        return [{"text": f"red {picture.getpixel((0, 0))[0]}"} for picture in looks]


def texts(out: Path) -> list[str]:
    return [json.loads(line)["text"] for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("batch_size", [1, 3, None, 100])
def test_rows_come_in_order_whatever_the_batch_size(tmp_path: Path, batch_size: int | None) -> None:
    sources = pictures(tmp_path / "in", 40)
    colours = Colours()
    tally = run(sources, FileSink(tmp_path / "a.jsonl"), colours, Silent(), batch_size)
    assert texts(tmp_path / "a.jsonl") == [f"red {number}" for number in range(40)]
    assert max(colours.sizes) == min(batch_size or 8, 40)
    assert tally == Tally(done=40)


def test_a_bad_picture_is_said_at_once_and_kept_in_errors(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sources = pictures(tmp_path / "in", 5)
    (tmp_path / "in" / "001.png").write_bytes(b"")
    sources.insert(3, Source("gone", problem="gone does not exist."))
    tally = run(sources, FileSink(tmp_path / "a.jsonl"), Colours(), Silent(), 2)
    assert texts(tmp_path / "a.jsonl") == ["red 0", "red 2", "red 3", "red 4"]
    errors = [json.loads(line) for line in (tmp_path / "a.jsonl.errors.jsonl").read_text().splitlines()]
    assert [error["file"] for error in errors] == [str(sources[1].path), "gone"]
    said = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("captioner: ") for line in said] == [error["error"] for error in errors]
    assert (tally.done, tally.failed) == (4, 2)


class Twins(Colours):
    """Answers a batch, but for the first, only beside another."""

    meeting = threading.Barrier(2)

    def answer(self, looks: list[Image.Image]) -> list[Row]:
        if self.sizes:
            self.meeting.wait(30)
            assert sys.getswitchinterval() == pytest.approx(batch.TURN)
        return super().answer(looks)


def test_batches_are_asked_about_side_by_side(tmp_path: Path) -> None:
    sources = pictures(tmp_path / "in", 40)
    (tmp_path / "in" / "030.png").write_bytes(b"")
    before = sys.getswitchinterval()
    tally = run(sources, FileSink(tmp_path / "a.jsonl"), Twins(together=2), Silent(), batch_size=8)
    assert sys.getswitchinterval() == before
    assert texts(tmp_path / "a.jsonl") == [f"red {number}" for number in range(40) if number != 30]
    assert tally == Tally(done=39, failed=1)


class Cramped(Colours):
    """Has no memory for the second batch while the third is asked about, which takes its time."""

    def __init__(self, third: int) -> None:
        """third: the first picture of the third batch."""
        super().__init__(together=2)
        self.third = third
        self.third_is_asked, self.second_failed = threading.Event(), threading.Event()
        self.under_way: set[int] = set()

    def answer(self, looks: list[Image.Image]) -> list[Row]:
        first = looks[0].getpixel((0, 0))[0]
        self.under_way.add(first)
        try:
            if first == self.third and not self.second_failed.is_set():
                self.third_is_asked.set()
                assert self.second_failed.wait(30)
                time.sleep(0.2)  # until the second batch would be asked about again
            elif first == 8 and not self.second_failed.is_set():
                assert self.third_is_asked.wait(30)
                self.second_failed.set()
                raise MemoryError
            else:
                assert self.under_way == {first}
            return super().answer(looks)
        finally:
            self.under_way.remove(first)


@pytest.mark.parametrize("large", [False, True])
def test_where_memory_runs_out_batches_are_asked_about_in_turn(
    tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A picture so large that it is asked about alone is asked about once more, and changes no size."""
    sources, colours = pictures(tmp_path / "in", 40), Cramped(third=9 if large else 16)
    if large:
        monkeypatch.setattr(batch, "HELD_PIXELS", 8 * 64)
        Image.new("RGB", (8 * 8, 9), (8, 0, 0)).save(sources[8].path)
    run(sources, FileSink(tmp_path / "a.jsonl"), colours, Silent(), batch_size=8)
    assert texts(tmp_path / "a.jsonl") == [f"red {number}" for number in range(40)]
    sizes = {size: colours.sizes.count(size) for size in set(colours.sizes)}
    assert sizes == ({8: 4, 1: 1, 7: 1} if large else {8: 2, 4: 6})
    assert ("going on with 4 pictures" in capsys.readouterr().err) != large


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path: Path, error: type[Exception]) -> None:
    colours = Colours(most=3, error=error)
    run(pictures(tmp_path / "in", 20), FileSink(tmp_path / "a.jsonl"), colours, Silent(), 8)
    assert texts(tmp_path / "a.jsonl") == [f"red {number}" for number in range(20)]
    assert max(colours.sizes) == 2


def test_no_memory_for_a_single_picture_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=", precision bf16"):
        run(pictures(tmp_path / "in", 4), FileSink(tmp_path / "a.jsonl"), Colours(most=0), Silent())


def test_another_error_of_the_model_is_not_taken_for_lack_of_memory(tmp_path: Path) -> None:
    class Broken(Colours):
        def answer(self, looks: list[Image.Image]) -> list[Row]:
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        run(pictures(tmp_path / "in", 4), FileSink(tmp_path / "a.jsonl"), Broken(), Silent())


@dataclass
class Picky(Colours):
    """A model that refuses some pictures, by their colour."""

    refused: frozenset[int] = frozenset()

    def answer(self, looks: list[Image.Image]) -> list[Row]:
        for picture in looks:
            if picture.getpixel((0, 0))[0] in self.refused:
                raise self.error("absolute aspect ratio\nmust be smaller than 200")
        return super().answer(looks)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, MemoryError])
def test_a_picture_that_the_model_fails_on_is_named_and_the_run_goes_on(tmp_path: Path, error: type[Exception]) -> None:
    sources = pictures(tmp_path / "in", 12)
    model = Picky(error=error, refused=frozenset({0, 5, 6}))
    tally = run(sources, FileSink(tmp_path / "a.jsonl"), model, Silent(), 4)
    assert (tally.done, tally.failed) == (9, 3)
    assert texts(tmp_path / "a.jsonl") == [f"red {number}" for number in range(12) if number not in (0, 5, 6)]
    errors = [json.loads(line) for line in (tmp_path / "a.jsonl.errors.jsonl").read_text().splitlines()]
    assert [row["file"] for row in errors] == [str(sources[number].path) for number in (0, 5, 6)]
    reason = (
        "not enough memory for this picture" if error is MemoryError else f"{error.__name__}: absolute aspect ratio"
    )
    assert all(reason in row["error"] and "\n" not in row["error"] for row in errors)
    again = run(sources, FileSink(tmp_path / "a.jsonl", resume=True), Colours(), Silent(), 4)
    assert (again.done, again.skipped) == (3, 9)


def test_a_single_picture_that_the_model_fails_on_is_a_sentence(tmp_path: Path) -> None:
    tally = run(pictures(tmp_path, 1), FileSink(tmp_path / "a.jsonl"), Picky(error=ValueError, refused={0}), Silent())
    assert tally == Tally(failed=1)


def test_numbers_that_are_none_are_an_error_of_their_picture(tmp_path: Path) -> None:
    class Damaged(Colours):
        def answer(self, looks: list[Image.Image]) -> list[Row]:
            scores = [float("nan") if picture.getpixel((0, 0))[0] == 2 else -1.0 for picture in looks]
            return [row | {"score": score} for row, score in zip(super().answer(looks), scores, strict=True)]

    run(pictures(tmp_path / "in", 4), FileSink(tmp_path / "a.jsonl"), Damaged(), Silent())
    assert texts(tmp_path / "a.jsonl") == ["red 0", "red 1", "red 3"]
    assert "weights are damaged" in (tmp_path / "a.jsonl.errors.jsonl").read_text()


def test_a_model_that_gives_no_numbers_at_all_ends_the_run(tmp_path: Path) -> None:
    class Damaged(Colours):
        def answer(self, looks: list[Image.Image]) -> list[Row]:
            return [{"embedding": [float("nan")] * 3} for _ in looks]

    with pytest.raises(BadCheckpoint, match="weights are damaged"):
        run(pictures(tmp_path / "in", 4), FileSink(tmp_path / "a.jsonl"), Damaged(), Silent())
    assert not (tmp_path / "a.jsonl").exists()


def test_a_run_of_one_picture_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    [source] = pictures(tmp_path / "in", 1)
    run_inputs([str(source.path)], Colours(), lambda many: Sidecars([str(source.path)]))
    assert capsys.readouterr().err == f"captioner: {source.path.with_suffix('.txt')}: 1 done\n"
    run_inputs([str(source.path)], Colours(), lambda many: Sidecars([str(source.path)], "overwrite"), quiet=True)
    assert capsys.readouterr().err == ""


def test_few_pictures_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "HELD_PIXELS", 3 * 64)
    opened, answered = [], []

    class Counting(Colours):
        def look(self, source: Source) -> Image.Image:
            opened.append(source)
            return super().look(source)

        def answer(self, looks: list[Image.Image]) -> list[Row]:
            answered.extend(looks)
            assert len(looks) <= 3
            # Those waiting, and those that the readers began before the waiting ones were known to be enough.
            assert len(opened) - len(answered) <= ahead.READ_AHEAD
            return super().answer(looks)

    run(pictures(tmp_path / "in", 60), FileSink(tmp_path / "a.jsonl"), Counting(), Silent(), 50)
    assert len(texts(tmp_path / "a.jsonl")) == 60


def test_what_is_read_ahead_keeps_to_a_budget_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 8×8 takes 512 bytes to open and 256 when it is open; one of 40×40 is beyond the whole budget."""
    monkeypatch.setattr(ahead, "HELD_BYTES", 1600)
    budgets, held = [], []

    class Watched(ahead.Budget):
        def __init__(self, limit: int) -> None:
            super().__init__(limit)
            budgets.append(self)

    class Watching(Colours):
        def look(self, source: Source) -> Image.Image:
            picture = super().look(source)
            held.append(budgets[0].held)
            return picture

    monkeypatch.setattr(ahead, "Budget", Watched)
    sources = pictures(tmp_path / "in", 60)
    for number in (0, 17, 18, 59):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(sources[number].path)
    sources[30].path.write_bytes(b"no picture")
    run(sources, FileSink(tmp_path / "a.jsonl"), Watching(), Silent(), 7)
    assert texts(tmp_path / "a.jsonl") == [f"red {number}" for number in range(60) if number != 30]
    assert max(held) == 40 * 40 * 8
    assert all(size <= 1600 for size in held if size != max(held))
    assert budgets[0].held == 0


def test_a_run_that_is_stopped_leaves_no_reader_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "HELD_BYTES", 600)
    sources = pictures(tmp_path / "in", 30)

    class Stopping(Colours):
        def answer(self, looks: list[Image.Image]) -> list[Row]:
            raise KeyboardInterrupt

    with pytest.raises(Stopped):
        run(sources, FileSink(tmp_path / "a.jsonl"), Stopping(), Silent(), 1)
    for thread in threading.enumerate():
        if thread.name.startswith("reader"):
            thread.join(60)
            assert not thread.is_alive()


def test_ctrl_c_says_how_to_go_on_and_loses_only_the_batch_in_flight(tmp_path: Path) -> None:
    sources = pictures(tmp_path / "in", 10)

    class Impatient(Colours):
        def answer(self, looks: list[Image.Image]) -> list[Row]:
            if len(self.sizes) == 2:
                raise KeyboardInterrupt
            return super().answer(looks)

    with pytest.raises(Stopped, match=r"6 done.*with resume"):
        run(sources, FileSink(tmp_path / "a.jsonl"), Impatient(), Silent(), 3)
    tally = run(sources, FileSink(tmp_path / "a.jsonl", resume=True), Colours(), Silent(), 3)
    assert (tally.done, tally.skipped) == (4, 6)
    assert texts(tmp_path / "a.jsonl") == [f"red {number}" for number in range(10)]


def test_a_picture_mended_since_is_taken_by_a_resumed_run(tmp_path: Path) -> None:
    sources = pictures(tmp_path / "in", 3)
    good = sources[1].path.read_bytes()
    sources[1].path.write_bytes(good[:30])
    run(sources, FileSink(tmp_path / "a.jsonl"), Colours(), Silent())
    sources[1].path.write_bytes(good)
    tally = run(sources, FileSink(tmp_path / "a.jsonl", resume=True), Colours(), Silent())
    assert (tally.done, tally.skipped, tally.failed) == (1, 2, 0)
    assert sorted(texts(tmp_path / "a.jsonl")) == ["red 0", "red 1", "red 2"]
    assert not (tmp_path / "a.jsonl.errors.jsonl").exists()


def test_errors_of_a_reader_that_are_no_bad_picture_end_the_run(tmp_path: Path) -> None:
    class Broken(Colours):
        def look(self, source: Source) -> Image.Image:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(pictures(tmp_path / "in", 1), FileSink(tmp_path / "a.jsonl"), Broken(), Silent())


def test_an_imagefolder_inside_the_input_does_not_feed_itself(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 3)
    for _ in range(2):
        result = CliRunner().invoke(app, generate(tmp_path / "in", tmp_path / "in" / "set", "--recursive", "--resume"))
        assert result.exit_code == 0, result.output
        rows = (tmp_path / "in" / "set" / "metadata.jsonl").read_text().splitlines()
        assert len(rows) == 3


# --- what the user sees ----------------------------------------------------------------------------------------------


def counted(inputs: list[str]) -> int | None:
    total = Total.of(inputs, recursive=False)
    for thread in threading.enumerate():
        if thread.name == "count":
            thread.join()
    return total.count


def test_what_can_be_read_only_once_is_not_read_to_be_counted(tmp_path: Path) -> None:
    pictures(tmp_path / "in", 3)
    (tmp_path / "list.txt").write_text(str(tmp_path / "in"))
    os.mkfifo(tmp_path / "stream")
    assert counted([f"@{tmp_path}/list.txt", "-"]) == 4
    assert counted([f"@{tmp_path}/stream", str(tmp_path / "in")]) is None
    assert counted(["@-"]) is None


def test_lines_tell_how_far_how_fast_and_how_long(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "in", 30)
    total = Total.of([str(tmp_path / "in")], recursive=False)
    for thread in threading.enumerate():
        if thread.name == "count":
            thread.join()
    assert total.count == 30
    clock = iter([0.0, 20.0, 20.0, 20.0, 40.0, 40.0, 40.0, 41.0, 41.0, 41.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    lines = Lines(total)
    lines.show(Tally(done=2, failed=1))
    lines.show(Tally(done=7, failed=1, skipped=2))
    assert capsys.readouterr().err.splitlines() == [
        "captioner: 3 of 30 pictures",
        "captioner: 10 of 30 pictures, 0.2/s, 1:20 left",
    ]


def test_the_pace_leaves_out_loading_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pace = Pace()
    assert pace(Tally(done=8)) == 0
    assert pace(Tally(done=28)) == 2


def test_a_run_of_many_ends_with_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures(tmp_path / "in", 2)
    (tmp_path / "in" / "bad.png").write_bytes(b"bad")
    run_inputs([str(tmp_path / "in")], Colours(), lambda many: FileSink(tmp_path / "a.jsonl"))
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"captioner: {tmp_path}/a.jsonl: 2 done, 1 failed, see {tmp_path}/a.jsonl.errors.jsonl"
    run_inputs([str(tmp_path / "in")], Colours(), lambda many: FileSink(tmp_path / "b.jsonl"), quiet=True)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_videos_beside_pictures_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pictures(tmp_path / "in", 2)
    for name in ("a.mp4", "b.mov", "notes.txt"):
        (tmp_path / "in" / name).touch()
    for quiet in (False, True):
        out = tmp_path / f"{quiet}.jsonl"
        tally = run_inputs([str(tmp_path / "in")], Colours(), lambda many, out=out: FileSink(out), quiet=quiet)
        assert tally == Tally(done=2)
        assert capsys.readouterr().err.splitlines()[1:] == [
            "captioner: 2 videos passed over: take a frame out first, as ffmpeg -i clip.mp4 -frames:v 1 clip.png does"
        ] * (not quiet)


# --- the command's settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [["--out", "a.jsonl"], ["--out", "set"], ["--sidecar", "--on-existing", "append"]])
def test_a_run_is_resumed_with_the_settings_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "in", 2)
    command = ["generate", "in", "--metadata", "first", "--quiet", *place]
    assert CliRunner().invoke(app, [*command, "--num-beams", "2"]).exit_code == 0
    before = content(tmp_path)
    changes = {
        "num.beams": ["--num-beams", "3"],
        "prefix": ["--num-beams", "2", "--prefix", "x"],
        "replace": ["--num-beams", "2", "--replace", "prompt 0=x"],
        "model": ["-m", "ofa"],
    }
    for named, changed in changes.items():
        refused = CliRunner().invoke(app, [*command, "--resume", *changed])
        assert refused.exit_code != 0
        assert re.search(f"{named} was .* and is now", refused.stderr)
        assert content(tmp_path) == before
    command[1] = str(tmp_path / "in")
    assert CliRunner().invoke(app, [*command, "--num-beams", "2", "--resume"]).exit_code == 0
    assert content(tmp_path) == before


def test_embedding_texts_goes_on_by_position_and_says_what_it_wrote(tmp_path: Path) -> None:
    lines, out = tmp_path / "prompts.txt", tmp_path / "a.jsonl"
    lines.write_text("a cat\na dog\na cat\n")
    whole = tmp_path / "whole.jsonl"
    done = CliRunner().invoke(app, ["embed", "--file", str(lines), "--out", str(whole)])
    assert done.stderr == f"captioner: {whole}: 3 done\n"
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["a cat", "a dog", "a cat"]
    first = tmp_path / "first.txt"
    first.write_text("a cat\na dog\n")
    assert CliRunner().invoke(app, ["embed", "--file", str(first), "--out", str(out)]).exit_code == 0
    again = CliRunner().invoke(app, ["embed", "--file", str(lines), "--out", str(out), "--resume"])
    assert again.stderr == f"captioner: {out}: 1 done, 2 were already\n"
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == ["a cat", "a dog", "a cat"]
    lines.write_text("a bird\n")
    refused = CliRunner().invoke(app, ["embed", "--file", str(lines), "--out", str(out), "--resume"])
    assert refused.exit_code != 0


# --- killed ----------------------------------------------------------------------------------------------------------


def generate(folder: Path, out: Path, *more: str) -> list[str]:
    """The real command, answering from what the pictures carry: a process without a model starts fast."""
    place = ["--sidecar"] if out.suffix == ".txt" else ["--out", str(out)]
    return ["generate", str(folder), "--metadata", "only", "--batch-size", "3", "--prefix", "sks", *place, *more]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.parametrize("out", ["captions.jsonl", "captions.parquet", "set", "sidecars.txt"])
def test_a_killed_process_resumes_to_the_content_of_an_unbroken_one(tmp_path: Path, out: str) -> None:
    """Standard input, named last, keeps the process waiting when some batches are written and more are read ahead."""
    sources = pictures(tmp_path / "in", ahead.READ_AHEAD + 8)
    (tmp_path / "in" / "002.png").write_bytes(b"no picture")
    if out.endswith(".txt"):
        (tmp_path / "in" / "001.txt").write_text("mine")
    last = sources[0].path.read_bytes()
    more = ["-", *(["--on-existing", "append"] if out.endswith(".txt") else [])]
    before = content(tmp_path)

    def invoke(*extra: str) -> dict[str, bytes]:
        result = CliRunner().invoke(app, generate(tmp_path / "in", tmp_path / out, *more, *extra), input=last)
        assert result.exit_code == 1, result.output
        return content(tmp_path)

    whole = invoke()
    assert len(whole) > len(before)
    if out.endswith(".txt"):
        journal_path(tmp_path / "in").unlink()
    for name in whole:
        (tmp_path / name).unlink()
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    if (tmp_path / "set").exists():
        (tmp_path / "set").rmdir()

    command = [sys.executable, "-m", "captioner", *generate(tmp_path / "in", tmp_path / out, *more)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    journal = journal_path(tmp_path / "in") if out.endswith(".txt") else None

    def written() -> bool:
        parts = [*tmp_path.rglob("*.part"), *([journal] if journal and journal.exists() else [])]
        return any(path.read_bytes().count(b"\n") >= 7 for path in parts)

    wait_for(written, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stderr.close()
    [part] = [journal] if journal else tmp_path.rglob("*.part")
    assert part.read_bytes().count(b"\n") == 7  # settings, six rows
    assert not (tmp_path / out).is_file()
    with open(part, "ab") as stream:
        stream.write(b'{"file": "half a li')

    refused = CliRunner().invoke(app, generate(tmp_path / "in", tmp_path / out, *more), input=last)
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    assert invoke("--resume") == whole


def test_ctrl_c_in_a_real_process_ends_with_130(tmp_path: Path) -> None:
    pictures(tmp_path / "in", ahead.READ_AHEAD + 8)
    command = [sys.executable, "-m", "captioner", *generate(tmp_path / "in", tmp_path / "a.jsonl", "-")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "a.jsonl.part"
    wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") > 1, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "--resume" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_a_process_that_was_begun_to_ignore_ctrl_c_does() -> None:
    """As a script's own in the background, which the terminal's Ctrl-C reaches as well."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with batch.Interrupts() as user:
            signal.raise_signal(signal.SIGINT)
            user.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ctrl_c_that_python_drops_still_stops_the_run() -> None:
    class Noisy:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), batch.Interrupts() as user:  # noqa: PT012
        swallowed = Noisy()
        del swallowed
        user.check()
    assert signal.getsignal(signal.SIGINT) is before
