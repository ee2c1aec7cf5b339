"""`python -m eval` score, compare, submission and help, as a user types them."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import captioner
from captioner.errors import BadInput, BadOutput
from captioner.text.minilm import packaged_minilm
from eval import __main__ as command_line
from eval import submission
from eval.compare import compare
from eval.metrics import cosines, metric_of
from eval.progress import track
from eval.results import Results, text_values
from eval.score import read_table, score
from eval.tables import read_rows
from tests.disk import files_of_at_most
from tests.eval.reports import quietly

ANIMALS = [
    f"{animal} {place}" for animal in ("fox", "owl", "cat", "hen", "cow") for place in ("at sea", "on ice", "in fog")
]


def run(*arguments: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command line in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return int(ended.value.code or 0)


def table(file: Path, rows: list[dict]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_help_is_quick_and_names_every_verb() -> None:
    code = "import sys; sys.argv = ['eval', '--help']; import runpy\n" + (
        "try: runpy.run_module('eval', run_name='__main__')\n"
        "except SystemExit: print([m for m in ('torch', 'numpy', 'transformers', 'datasets') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.rstrip().endswith("[]")
    for verb in ("report", "score", "compare", "submission", "speed"):
        assert verb in shown
    assert "Exit status" in shown


def test_score_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    rows = [{"truth": t, "prediction": t, "model": "right"} for t in ANIMALS]
    rows += [{"truth": t, "prediction": "a car", "model": "wrong"} for t in ANIMALS]
    file = table(tmp_path / "pairs.csv", rows)
    assert run("score", file, "--no-cosine", "--out", tmp_path / "out", monkeypatch=monkeypatch) == 0
    assert "Levenshtein" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["best"]["quick_ratio"] == "right"
    assert written["models"][0]["figures"]["quick_ratio"]["mean"] == 1
    assert "cosine" not in written["models"][0]["figures"]
    assert "<img" not in (tmp_path / "out" / "report.html").read_text()
    assert run("score", tmp_path / "none.csv", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_number_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"truth": "a", "prediction": NaN}\n{"truth": "b", "prediction": 7}\n')
    rows = read_rows(tmp_path / "a.jsonl", ("truth", "prediction"))
    assert [row["prediction"] for row in rows] == [None, "7"]


def test_score_by_another_embedder_and_a_list_of_modifiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The packaged MiniLM under another name: the same figures, another label."""
    shutil.copytree(packaged_minilm(), tmp_path / "other")
    (tmp_path / "terms.txt").write_text("oil\n")
    rows = [{"truth": f"{t}, oil, rare", "prediction": f"{t}, oil, else"} for t in ANIMALS]
    file = table(tmp_path / "pairs.csv", rows)
    chosen = ("--embedder", tmp_path / "other", "--modifiers", tmp_path / "terms.txt")
    assert run("score", file, "--out", tmp_path / "out", *chosen, monkeypatch=monkeypatch) == 0
    assert "other cosine" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    figures = written["models"][0]["figures"]
    assert figures["modifier_jaccard"]["mean"] == 1
    assert figures["subject_cosine"]["median"] == pytest.approx(1)
    plain = score(file, resamples=200)["models"][0]["figures"]
    assert figures["cosine"]["mean"] == pytest.approx(plain["cosine"]["mean"], abs=1e-4)
    assert run("score", file, "--no-cosine", *chosen, monkeypatch=monkeypatch) == 2
    assert "leave it out, or --embedder" in capsys.readouterr().err


def test_score_handles_odd_tables(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "truth": "a fox", "prediction": "a fox", "model": "m"},
        {"id": "a", "truth": "a fox", "prediction": "other", "model": "m"},
        {"id": "b", "truth": "", "prediction": "three words here", "model": "m"},
        {"id": "b", "truth": "", "prediction": "x", "model": "n"},
    ]
    measured, notes = read_table(table(tmp_path / "odd.csv", rows))
    assert measured.texts == {"m": ["a fox", "three words here"], "n": [None, "x"]}
    values = text_values(measured.texts, measured.truths)
    np.testing.assert_array_equal(values["levenshtein_ratio"], [[1, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(values["length"], [[2, np.nan], [3, 1]])
    assert notes == [
        "1 row with the model and id of another; the first counts.",
        "1 row without a true text: only the length is measured.",
    ]
    with pytest.raises(BadInput, match="lacks the column prediction"):
        score(table(tmp_path / "lacks.csv", [{"truth": "x"}]))
    with pytest.raises(BadInput, match="do not have the same truth"):
        read_table(table(tmp_path / "mixed.csv", [*rows[:1], {**rows[0], "truth": "b", "model": "n"}]))


def test_our_own_tables_are_scored_when_they_have_the_truth(tmp_path: Path) -> None:
    rows = [{"file": f"{n}.png", "text": text, "truth": text} for n, text in enumerate(ANIMALS)]
    ours = tmp_path / "ours.jsonl"
    ours.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score(ours, cosine=False, resamples=200)["models"][0]["figures"]["quick_ratio"]["mean"] == 1
    ours.write_text('{"file": "a.png", "text": "a fox"}\n')
    with pytest.raises(BadInput, match=r"lacks the column truth.*report --data DIR --models"):
        score(ours, cosine=False)


def test_what_others_wrote_is_only_text_on_the_terminal(tmp_path: Path, monkeypatch, capsys) -> None:
    labels = ("[/b]", "\x1b[31mred")
    rows = [{"truth": t, "prediction": t, "model": label} for t in ANIMALS for label in labels]
    file = table(tmp_path / "\x1b]0;x.csv", [*rows, rows[0] | {"id": "0"}])
    assert run("score", file, "--no-cosine", "--resamples", "200", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr()
    assert "[/b]" in shown.out
    assert "\x1b[31mred" not in shown.out
    assert run("score", tmp_path / "\x1b]0;y.csv", monkeypatch=monkeypatch) == 2
    assert "\x1b" not in shown.err + capsys.readouterr().err


@pytest.mark.parametrize("verb", ["report", "redraw", "page", "score", "compare", "submission", "speed"])
def test_h_is_help_without_types_of_python(verb: str, monkeypatch, capsys) -> None:
    assert run(verb, "-h", monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert f"python -m eval {verb}" in shown
    assert not re.search(r"<\w", shown)


@pytest.mark.parametrize("verb", ["report", "redraw", "score", "compare"])
def test_no_seed_is_below_0(verb: str, monkeypatch, capsys) -> None:
    assert run(verb, "--seed", -1, monkeypatch=monkeypatch) == 2
    assert "'--seed'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("speed --suite --only nope --repeats 3 --batch-sizes 1", "--batch-sizes and --repeats would change nothing"),
        ("speed --suite --only nope --data x", "--data would change nothing: the suite"),
        ("speed --model mini --only text", "--only would change nothing: it names parts of --suite."),
        ("speed --model mini --limit 3", "--limit would change nothing: it is about --data."),
        ("speed --model mini --data x --repeats 5", "--repeats would change nothing: with --data texts are compared."),
        ("speed --model mini --profile a.svg --repeats 5", "--repeats would change nothing: a profile is taken once."),
        ("submission --check x.csv --batch-size 8", "--batch-size would change nothing: --check asks no model."),
    ],
)
def test_options_that_would_change_nothing(options: str, told: str, monkeypatch, capsys) -> None:
    assert run(*options.split(), monkeypatch=monkeypatch) == 2
    assert told in capsys.readouterr().err


def test_a_submission_of_nothing_leaves_nothing(tmp_path: Path, tiny_checkpoint, monkeypatch, capsys) -> None:
    """Told before the model is loaded."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": ""}\n')
    where = ("--data", tmp_path / "data", "--out", tmp_path / "out.csv", "--model", tiny_checkpoint("direct"))
    assert run("submission", *where, monkeypatch=monkeypatch) == 2
    assert "holds no picture with a caption" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["data"]
    (tmp_path / "zero.csv").touch()
    for file, told in (("zero.csv", "wrong: it is empty, not imgId_eId,val"), ("data", "is a folder, not a table")):
        assert run("submission", "--check", tmp_path / file, monkeypatch=monkeypatch) in (1, 2)
        shown = capsys.readouterr()
        assert told in shown.out + shown.err


def test_ctrl_c_says_what_is_kept(tmp_path: Path, images: Path, tiny_checkpoint, monkeypatch, capsys) -> None:
    def stop(*_) -> None:
        raise KeyboardInterrupt

    model = str(tiny_checkpoint("direct"))
    monkeypatch.setattr("eval.progress.track", stop)
    monkeypatch.setattr("eval.speed.model.random_blip", stop)
    (images / "metadata.jsonl").write_text('{"file_name": "im_0.png", "text": "a fox"}\n')
    stopped = {
        ("report", "--data", images, "--models", model, "--out", tmp_path / "r"): "the same command goes on",
        ("submission", "--data", images, "--model", model, "--out", tmp_path / "s.csv"): "with --resume goes on",
        ("speed", "--model", "blip-tiny-random"): "Nothing was written",
    }
    for command, sentence in stopped.items():
        assert run(*command, monkeypatch=monkeypatch) == 130
        assert sentence in capsys.readouterr().err


def test_progress_is_seen_without_a_terminal(capsys: pytest.CaptureFixture) -> None:
    assert list(track(range(3), 3, "a\x1b[31m model")) == [0, 1, 2]
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "a\\x1b[31m model" in shown


def scored(folder: Path, predictions: list[str], model: str = "m") -> Path:
    rows = [
        {"id": str(n), "truth": t, "prediction": p, "model": model}
        for n, (t, p) in enumerate(zip(ANIMALS, predictions, strict=True))
    ]
    folder.mkdir()
    score(table(folder.with_suffix(".csv"), rows), folder, cosine=False, resamples=300)
    return folder / "report.json"


def test_compare_says_by_its_exit_status_whether_b_is_worse(tmp_path, monkeypatch, capsys) -> None:
    good, bad = scored(tmp_path / "good", ANIMALS), scored(tmp_path / "bad", ["a car"] * len(ANIMALS))
    assert run("compare", good, bad, monkeypatch=monkeypatch) == 1
    assert "worse" in capsys.readouterr().out
    assert run("compare", bad, good, monkeypatch=monkeypatch) == 0
    monkeypatch.setenv("COLUMNS", "80")
    assert run("compare", good, bad, "--metric", "levenshtein_similarity", monkeypatch=monkeypatch) == 1
    title, heading, line = capsys.readouterr().out.splitlines()[-4:-1]
    assert title.strip() == "m"
    assert heading.split() == ["metric", "change", "95", "%", "interval", "p", "(Holm)", "n", "B", "is"]
    assert re.fullmatch(r"levenshtein_similarity +-0\.\d{3} +-0\.\d{3} to -0\.\d{3} +< 0\.001 +15 +worse *", line)
    assert run("compare", good, good.parent, monkeypatch=monkeypatch) == 0  # a folder is as good
    assert run("compare", good, bad, "--metric", "length", monkeypatch=monkeypatch) == 0  # neither good nor bad
    assert run("compare", good, bad, "--metric", "nonsense", monkeypatch=monkeypatch) == 2
    other = scored(tmp_path / "other", ANIMALS, model="another")
    with pytest.raises(BadInput, match="no model 'unknown'"):
        compare(good, other, model_b="unknown")
    with pytest.raises(BadInput, match="second report has no model 'm': it has another"):
        compare(good, other, model_a="m")
    [change] = compare(good, other, ["quick_ratio"], resamples=300)
    assert (change.a, change.b, change.difference.interval.mean) == ("m", "another", 0)
    (tmp_path / "good" / "per_image.parquet").unlink()
    with pytest.raises(BadInput, match=r"per_image\.parquet"):
        compare(good, bad)
    # Whatever else is wrong, the status is never 1: that means "worse".
    capsys.readouterr()
    assert run("compare", good, bad, monkeypatch=monkeypatch) == 2
    bad.write_text('{"data": 5, "models": [], "metrics": []}')
    assert run("compare", other, bad, monkeypatch=monkeypatch) == 2
    monkeypatch.setattr("eval.compare.compare", lambda *_: 1 / 0)
    assert run("compare", other, other, monkeypatch=monkeypatch) == 70
    assert capsys.readouterr().err.count("\n") == 3


def test_compare_pairs_by_picture_and_prompt(tmp_path: Path) -> None:
    def saved(name: str, hashes: list[str], values: list[float]) -> Path:
        (tmp_path / name).mkdir()
        items = len(hashes)
        truths = [("a fox",)] * items
        Results(
            [f"{name}{n}" for n in range(items)], truths, hashes, ["m"], {"m": ["x"] * items},
            {"cosine": np.array(values)[:, None]},
        ).save(tmp_path / name / "per_image.parquet")  # fmt: skip
        (tmp_path / name / "report.json").write_text('{"data": {}, "models": [], "metrics": []}')
        return tmp_path / name / "report.json"

    a, b = saved("a", ["p", "q", "r"], [0.1, 0.2, 0.3]), saved("b", ["r", "s", "p"], [0.5, 0.9, 0.2])
    [change] = compare(a, b, resamples=200)
    assert change.difference.items == 2
    assert change.difference.interval.mean == pytest.approx(0.15)
    with pytest.raises(BadInput, match="no picture"):
        compare(a, saved("c", ["x"], [0.1]))


@pytest.mark.parametrize("metric", ["cider_d", "cider_d_coco"])
def test_compare_refuses_figures_whose_word_weights_are_of_other_data(metric: str, tmp_path: Path) -> None:
    def saved(name: str, prompts: list[str]) -> Path:
        rows = [{"id": prompt, "truth": prompt, "prediction": f"{prompt} now"} for prompt in prompts]
        (tmp_path / name).mkdir()
        score(table(tmp_path / f"{name}.csv", rows), tmp_path / name, cosine=False, resamples=200)
        file = tmp_path / name / "per_image.parquet"
        measured = Results.load(file)
        values = metric_of(metric)(measured.texts[measured.models[0]], measured.truths)
        replace(measured, values={metric: values[:, None]}).save(file)
        return tmp_path / name

    whole, turned, part = saved("whole", ANIMALS), saved("turned", ANIMALS[::-1]), saved("part", ANIMALS[:2])
    [change] = compare(whole, turned, [metric], resamples=200)
    assert change.difference.interval.mean == pytest.approx(0)
    with pytest.raises(BadInput, match=f"figures {metric} of .* different word weights"):
        compare(whole, part, [metric], resamples=200)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five pictures as the competition has them; the third cannot be read."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (50 * number, 10, 200)).save(folder / f"im_{number}.png")
    (folder / "im_2.png").write_bytes(b"broken")
    return folder


def test_submission_is_written_in_order_and_checked(tmp_path: Path, images: Path, tiny_checkpoint) -> None:
    settings, out = submission.Settings(str(tiny_checkpoint("direct")), batch_size=2), tmp_path / "submission.csv"
    assert submission.write(settings, str(tmp_path), out, quietly) == ["im_2"]
    lines = out.read_text().splitlines()
    assert lines[0] == "imgId_eId,val"
    assert len(lines) == 1 + 5 * 384
    assert [line.partition(",")[0] for line in lines[1 + 384 : 4 + 384]] == ["im_1_0", "im_1_1", "im_1_2"]
    rows = np.reshape([float(line.partition(",")[2]) for line in lines[1:]], (5, 384))
    paths = [images / f"im_{number}.png" for number in (0, 1, 3, 4)]
    np.testing.assert_allclose(rows[[0, 1, 3, 4]], captioner.load(settings.model).embed(paths), atol=1e-5)
    assert len({row.tobytes() for row in rows}) == 5
    with pytest.raises(BadOutput, match="there already"):
        submission.write(settings, str(tmp_path), out, quietly)
    assert not (tmp_path / "submission.csv.part").exists()

    prompts = table(tmp_path / "prompts.csv", [{"imgId": f"im_{n}", "prompt": ANIMALS[n]} for n in range(5)])
    truth = np.random.default_rng(0).normal(size=(5, 384))
    embed = {ANIMALS[n]: truth[n] for n in range(5)}
    result = submission.check(out, prompts, lambda texts: np.stack([embed[text] for text in texts]), batch=2)
    assert result.problems == []
    assert result.cosine.mean == pytest.approx(cosines(rows, truth).mean())


def test_a_stopped_submission_goes_on_and_is_the_same(tmp_path: Path, images: Path, tiny_checkpoint) -> None:
    settings, data = submission.Settings(str(tiny_checkpoint("direct")), batch_size=2), str(tmp_path)
    submission.write(settings, data, tmp_path / "whole.csv", quietly)
    out, part = tmp_path / "out.csv", tmp_path / "out.csv.part"
    asked: list[int] = []

    def stopped(steps, total, what):
        for step in steps:
            if asked:
                raise KeyboardInterrupt
            asked.append(total)
            yield step

    with pytest.raises(KeyboardInterrupt):
        submission.write(settings, data, out, stopped)
    assert not out.exists()
    with part.open("a") as lines:
        lines.write('{"id": "im_2", "te')  # cut off by a kill
    with pytest.raises(BadOutput, match="Add --resume"):
        submission.write(settings, data, out, quietly)
    with pytest.raises(BadOutput, match="begun with another model"):
        submission.write(replace(settings, precision="bf16"), data, out, quietly, resume=True)
    begun = part.read_bytes()
    part.write_bytes(damaged := begun.replace(b"im_", b"im\xff", 1) + b"\n")
    with pytest.raises(BadInput, match="line 4, is damaged"):
        submission.write(settings, data, out, quietly, resume=True)
    assert part.read_bytes() == damaged
    part.write_bytes(begun)
    assert submission.write(settings, data, out, lambda steps, total, _: asked.append(total) or steps, True) == ["im_2"]
    assert asked == [3, 2]
    assert out.read_text() == (tmp_path / "whole.csv").read_text()
    assert not part.exists()


def test_a_file_that_appears_under_a_submissions_name_is_left_alone(
    tmp_path: Path, images: Path, tiny_checkpoint
) -> None:
    settings, out = submission.Settings(str(tiny_checkpoint("direct"))), tmp_path / "out.csv"

    def another(steps, total, what):
        out.write_text("of somebody else")
        return steps

    with pytest.raises(BadOutput, match="has appeared meanwhile and is left alone: move it away, and add --resume"):
        submission.write(settings, str(tmp_path), out, another)
    assert out.read_text() == "of somebody else"
    out.unlink()
    assert submission.write(settings, str(tmp_path), out, quietly, resume=True) == ["im_2"]


def test_a_disk_that_takes_a_part_of_an_answer_is_full(tmp_path: Path) -> None:
    part = tmp_path / "out.csv.part"
    with part.open("ab", buffering=0) as stream, files_of_at_most(100), pytest.raises(BadOutput, match="make room"):
        submission._write(stream, "x" * 150)


def test_two_images_of_one_name_are_refused_before_a_model_is_loaded(tmp_path: Path, images: Path) -> None:
    Image.new("RGB", (8, 8)).save(images / "im_1.jpg")
    with pytest.raises(BadInput, match="Two images are called 'im_1'"):
        submission.pictures(str(images))
    with pytest.raises(BadOutput, match="no folder"):
        submission.write(submission.Settings("mini"), str(images), tmp_path / "none" / "out.csv", quietly)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda lines: ["imgId,val", *lines[1:]], "its first line"),
        (lambda lines: lines[:-1], "in order"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "in order"),
        (lambda lines: lines[:385], "missing"),
        (lambda lines: lines + lines[1:385], "comes twice"),
        (lambda lines: [line.replace("b_", "c_") for line in lines], "not in the prompts"),
        (lambda lines: [*lines[:5], "a_4,nan", *lines[6:]], "not finite"),
        (lambda lines: [*lines[:5], "a_4,1e308", *lines[6:]], "too large"),
        (lambda lines: [*(line.replace("0.05", "1e-320") for line in lines)], "too small"),
        (lambda lines: [*lines[:5], "a_4,much", *lines[6:]], "one number"),
        (lambda lines: [*lines[:5], "a_4", *lines[6:]], "one number"),
        (lambda lines: [*lines[:5], "", *lines[6:]], "in order"),
    ],
)
def test_a_wrong_submission_is_told_what_is_wrong(tmp_path: Path, spoil, problem: str) -> None:
    lines = ["imgId_eId,val", *(f"{image}_{n},0.05" for image in "ab" for n in range(384))]
    file, prompts = tmp_path / "s.csv", table(tmp_path / "p.csv", [{"imgId": i, "prompt": i} for i in "ab"])
    embed = lambda texts: np.ones((len(texts), 384))  # noqa: E731
    file.write_text("\n".join(lines) + "\n")
    assert submission.check(file, prompts, embed).problems == submission.check(file).problems == []
    file.write_text("\n".join(spoil(lines)) + "\n")
    if problem not in ("missing", "not in the prompts"):  # what can be told from the file alone
        assert problem in " ".join(submission.check(file).problems)
    assert problem in " ".join(submission.check(file, prompts, embed).problems)


def test_submission_with_a_real_model(tmp_path, tiny_checkpoint, monkeypatch, capsys) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8), (50 * number, 10, 200)).save(tmp_path / f"{number}.png")
    prompts = table(tmp_path / "prompts.csv", [{"imgId": str(n), "prompt": ANIMALS[n]} for n in range(3)])
    out = tmp_path / "out.csv"
    model = str(tiny_checkpoint("direct"))
    assert run("submission", "--data", tmp_path, "--model", model, "--out", out, monkeypatch=monkeypatch) == 0
    assert run("submission", "--check", out, "--prompts", prompts, monkeypatch=monkeypatch) == 0
    assert "3 images, mean cosine" in capsys.readouterr().out
    assert run("submission", "--check", out, monkeypatch=monkeypatch) == 0
    assert "3 images; without --prompts" in capsys.readouterr().out
    (tmp_path / "prompts.csv").write_text("imgId,prompt\n0\n")
    assert run("submission", "--check", out, "--prompts", prompts, monkeypatch=monkeypatch) == 2
    (tmp_path / "prompts.csv").write_text("imgId,prompt\n0,\n")
    assert run("submission", "--check", out, "--prompts", prompts, monkeypatch=monkeypatch) == 2
    assert "1 row without the id or the prompt" in capsys.readouterr().err


def test_names_and_figures_of_many_models_stay_whole(tmp_path, monkeypatch, capsys) -> None:
    names = ["mini", "blip-large", "knn:index-of-photos", "openai:http://localhost:8000/v1#joycaption", "a", "b", "c"]
    rows = [{"id": "1", "truth": "a cat", "prediction": "a cat", "model": name} for name in names]
    monkeypatch.setenv("COLUMNS", "80")
    file = table(tmp_path / "many.csv", rows)
    assert run("score", file, "--no-cosine", "--resamples", "100", monkeypatch=monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    headings = [re.split(r"\s*┃\s*", line)[2:-1] for line in lines if line.startswith("┃")]
    assert len(headings) > 1
    assert [name for heading in headings for name in heading] == names
    cells = [cell for line in lines if line.startswith("│") for cell in re.split(r"\s*│\s*", line)[2:-1]]
    assert len(cells) % len(names) == 0
    assert all(re.fullmatch(r"\d+\.\d+|–", cell) for cell in cells)
