"""The folder of a report: what is refused, and that a foreign or damaged file is one sentence."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner.errors import BadInput, BadOutput
from captioner.sinks.row import without_nan
from eval import store
from eval.page import WORDS
from eval.results import Results


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"data": 5, "models": [], "metrics": []}', '{"data": {}, "models": [5], "metrics": []}'),
        *('{"data": {}, "models": [{}], "metrics": []}', "[" * 100_000),
    ],
)
def test_what_is_no_report_is_said_in_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    for path in (tmp_path, tmp_path / "report.json"):
        with pytest.raises(BadInput, match=r"report\.json"):
            store.load_report(path)


def test_a_report_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="There is no report at "):
        store.load(tmp_path / "nope")


def test_nothing_that_is_no_number_gets_into_the_json() -> None:
    plain = without_nan({"a": [1.5, float("nan")], "b": {"c": float("inf")}, "d": "x"})
    assert json.dumps(plain, allow_nan=False) == '{"a": [1.5, null], "b": {"c": null}, "d": "x"}'


def test_a_folder_of_others_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(BadOutput, match=r"other files \(letter\.txt\)"):
        opened(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]
    opened(tmp_path / "new" / "deep")
    assert not (tmp_path / "new" / "deep").exists()  # nothing came about in it
    with pytest.raises(BadOutput, match="cannot be written to"):
        opened(tmp_path / "letter.txt")


def test_a_folder_with_a_report_is_a_place_for_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    for name in ("report.json", "report.html", ".hidden"):
        (tmp_path / name).touch()
    opened(tmp_path)
    with pytest.raises(BadOutput, match=r"other files \(answers\)"), store.prepared(tmp_path, figures_only=True):
        pass  # whoever may have figures alone gets no texts
    (tmp_path / "answers").rmdir()
    (tmp_path / "report.json").unlink()
    for name in ("d.txt", "c.txt", "a.txt"):
        (tmp_path / name).touch()
    with pytest.raises(BadOutput, match=r"other files \(a\.txt, c\.txt, d\.txt\)"):
        opened(tmp_path)  # a page alone is no report


def test_a_damaged_report_is_no_place_for_another(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(BadOutput, match="Delete that file to make the report anew"):
        store.refuse_other_report(tmp_path, "fingerprint", ["m"])


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    with store.prepared(tmp_path), pytest.raises(BadOutput, match="being written by another run"):
        opened(tmp_path)
    opened(tmp_path)


def opened(out: Path) -> None:
    with store.prepared(out):
        pass


def test_damaged_values_are_said_in_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "per_image.parquet"
    Results(
        ["a", "b"], [("x",), ("y",)], [None, None], ["m", "n"], {"m": ["x", "y"], "n": ["x", None]},
        {"cosine": np.array([[0.1, 0.2], [0.3, np.nan]])},
    ).save(file)  # fmt: skip
    table = pq.read_table(file)
    found = Results.load(file)
    np.testing.assert_array_equal(found.values["cosine"], [[0.1, 0.2], [0.3, np.nan]])
    damaged = {
        "a row is missing": table.slice(1),
        "values are strings": table.set_column(5, "cosine", pa.array(["1"] * 4)),
        "no truths": table.set_column(2, "truths", pa.array([None] * 4, pa.list_(pa.string()))),
        "a null among the truths": table.set_column(2, "truths", pa.array([["x", None]] * 4)),
        "a model is nameless": table.set_column(3, "model", pa.array([None, "n"] * 2)),
    }
    for name, content in damaged.items():
        pq.write_table(content, file)
        with pytest.raises(BadInput, match="damaged"):
            pytest.fail(name + str(Results.load(file)))


def test_distinct_is_what_its_definition_says() -> None:
    assert store.distinct(["a fox", "a fox", "an owl", None]) == pytest.approx(2 / 3)
    assert "number of different texts over that of all texts" in WORDS["distinct"]
