"""Where an open file can be neither removed nor renamed, and fewer names can be made, every output is written too."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from captioner.files import lease
from captioner.files.atomic import replacing, write_text
from captioner.images import Source
from captioner.review import Review
from captioner.shards import merge, part, plan
from captioner.sinks import FileSink, ImageFolder, Result, Sidecars
from tests.review.folders import picture
from tests.shards.colours import job
from tests.windows import like_windows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is open is read from /proc")


@pytest.fixture(autouse=True)
def _windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    with like_windows(tmp_path):
        yield


@pytest.fixture
def results(tmp_path: Path) -> list[Result]:
    (tmp_path / "in").mkdir()
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", number)
    paths = [tmp_path / "in" / f"{number}.png" for number in range(3)]
    return [Result(Source(str(path), path=path), {"file": str(path), "text": f"a cat, {path.stem}"}) for path in paths]


def test_what_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a", "w", encoding="utf-8"):
        with pytest.raises(PermissionError):
            (tmp_path / "a").unlink()
        with pytest.raises(PermissionError), replacing(tmp_path / "a"):
            pass
    write_text(tmp_path / "a", "whole")
    for name in ("a:b", "a?", "nul.txt", "a."):
        with pytest.raises(OSError, match="syntax"):
            write_text(tmp_path / name, "")


@pytest.mark.parametrize("held", ["target", "new"])
def test_a_file_that_is_held_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """As by a virus scanner, which opens what was just written."""
    write_text(tmp_path / "a", "before")
    with ExitStack() as scanner:
        monkeypatch.setattr(time, "sleep", lambda _: scanner.close())
        with replacing(tmp_path / "a") as new:
            new.write_text("after", encoding="utf-8")
            scanner.enter_context(open(tmp_path / "a" if held == "target" else new, "rb"))
    assert (tmp_path / "a").read_text(encoding="utf-8") == "after"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "folder"])
def test_outputs_are_written_stopped_and_gone_on_with(tmp_path: Path, results: list[Result], name: str) -> None:
    def sink(resume: bool) -> FileSink:
        return (FileSink if "." in name else ImageFolder)(tmp_path / name, resume=resume)

    with suppress(KeyboardInterrupt), sink(resume=False) as stopped:
        stopped.write(results[:1])
        raise KeyboardInterrupt
    with sink(resume=True) as going_on:
        assert [going_on.wants(result.source) for result in results] == [False, True, True]
        going_on.write(results[1:])
        going_on.fail("x.png", "x.png is empty (0 bytes).")
    assert not [file for file in os.listdir(tmp_path) if file.endswith((".part", ".tmp"))]


def test_a_picture_from_elsewhere_gets_a_name_that_can_be_made(tmp_path: Path, results: list[Result]) -> None:
    names = [f"http://x.org/{name}" for name in ("a:b.png", "A_B.png", "nul.png", "a%3Fb.png", "a.")]
    contents = [(tmp_path / f"in/{number % 3}.png").read_bytes() for number in range(5)]
    with ImageFolder(tmp_path / "set") as sink:
        sink.write([Result(Source(n, data=c), {"file": n}) for n, c in zip(names, contents, strict=True)])
    made = set(os.listdir(tmp_path / "set")) - {"metadata.jsonl", ".metadata.jsonl.run.json"}
    assert made == {"a_b.png", "A_B-2.png", "_nul.png", "a_3Fb.png", "a.png"}


def test_sidecars(tmp_path: Path, results: list[Result]) -> None:
    for on_existing in ("skip", "overwrite", "append"):
        with Sidecars([str(tmp_path / "in")], on_existing) as sink:
            sink.write([Result(source, row | {"text": on_existing}) for source, row in results if sink.wants(source)])
    assert (tmp_path / "in/1.txt").read_text(encoding="utf-8") == "overwrite, append\n"


def test_a_table_is_corrected(tmp_path: Path, results: list[Result]) -> None:
    with FileSink(tmp_path / "in" / "a.jsonl") as sink:
        sink.write(results)
    with Review(tmp_path / "in") as review:
        review.edit("1.png", "a dog")
        review.flush()
        assert review.row("1.png").problem is None
    assert "a dog" in (tmp_path / "in" / "a.jsonl").read_text(encoding="utf-8")


def test_shards(tmp_path: Path, results: list[Result]) -> None:
    planned = plan.make(tmp_path / "run", [str(tmp_path / "in")], 2)
    assert len(list(part.work(planned, job()))) == 2
    merge.merge(planned, tmp_path / "all.parquet", "table")
    assert os.listdir(tmp_path / "run" / "leases") == []


def test_a_lease_is_held_lost_and_let_go_of(tmp_path: Path) -> None:
    first = lease.take(tmp_path / "a")
    assert first is not None
    assert lease.take(tmp_path / "a") is None
    first.release()
    first.release()
    assert os.listdir(tmp_path) == []
