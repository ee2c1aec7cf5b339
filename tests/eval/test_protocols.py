"""Papers' tables by one command, offline on a local copy with the data set's own columns."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captioner.errors import BadInput
from captioner.pairs.layouts import ReadOptions
from eval import __main__ as command_line
from eval import ngrams, protocols, submission
from eval.asking import Settings
from eval.clip import Clip
from eval.measure import Measures
from eval.metrics import cosines
from eval.report import report
from eval.terminal import print_figures
from tests.eval.reports import quietly

PROMPTS = {
    "u0": ("a castle number one", ["greg rutkowski", "8k"], "a castle number one, by Greg Rutkowski, 8k, a moat"),
    "u1": ("a red fox", ["8k"], "a red fox, 8k"),
    "u2": ("two cats", [], "two cats, in a very rare pose"),
}
SAID = {"u0": "a castle, 8K, sharp focus", "u1": "a fox, by greg rutkowski, a moat", "u2": "cats"}


def picture(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 24), (red, 90, 40)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def lexica(tmp_path: Path) -> Path:
    """LexicaDataset's columns, two splits; the train split is of other prompts."""
    folder = tmp_path / "lexica"
    folder.mkdir()
    for split, prompts in (("test", PROMPTS), ("train", {"t0": ("a dog", ["oil"], "a dog, oil")})):
        rows = [
            {
                "image": {"bytes": picture(60 * number), "path": None},
                **{"prompt": prompt, "id": identifier, "promptid": f"p{number}", "width": 24, "height": 24},
                **{"seed": number, "grid": False, "model": "stable-diffusion", "nsfw": "False"},
                **{"subject": subject, "modifier10": modifiers, "modifier10_vector": [0.0, 1.0]},
            }
            for number, (identifier, (subject, modifiers, prompt)) in enumerate(prompts.items())
        ]
        schema = pa.Table.from_pylist(rows).schema
        index = schema.get_field_index("modifier10")
        schema = schema.set(index, pa.field("modifier10", pa.list_(pa.string())))
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def said(tmp_path: Path) -> str:
    file = tmp_path / "said.jsonl"
    file.write_text("".join(json.dumps({"id": i, "prediction": text}) + "\n" for i, text in SAID.items()))
    return f"said={file}"


def make(data: Path, said: str, out: Path, **chosen):
    chosen = {"resamples": 200, "reading": ReadOptions(split="test"), **chosen}
    return report([f"parquet:{data}"], [said], out, quietly, **chosen)


def test_promptstealers_table(lexica: Path, said: str, tmp_path: Path, tiny_checkpoint) -> None:
    folder = str(tiny_checkpoint("clip"))
    written = make(lexica, said, tmp_path / "out", measures=Measures(clip=folder, protocol="promptstealer"))
    assert written["data"]["pictures"] == 3
    protocol = written["protocol"]
    assert protocol is not None
    assert [column["label"] for column in protocol["columns"]] == ["semantic", "modifier"]
    published = {row["label"]: row["values"] for row in protocol["published"]}
    assert published["PromptStealer"] == [0.6999, 0.4477]
    clip = Clip(folder)
    truths = [prompt for _, _, prompt in PROMPTS.values()]
    semantic = cosines(clip.embed_texts(list(SAID.values())), clip.embed_texts(truths)).mean()
    # u0: {8k} of {greg rutkowski, 8k}; u1: {greg rutkowski} against {8k}; u2: neither has one, which is 0 there.
    assert protocol["rows"][0]["values"] == pytest.approx([semantic, (1 / 2 + 0 + 0) / 3], abs=1e-6)
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| PromptStealer | 0.6999 | 0.4477 | as published" in markdown
    assert "| said |" in markdown.split("## PromptStealer")[1]


def test_the_authors_list_says_what_counts(lexica: Path, tmp_path: Path) -> None:
    (tmp_path / "keywords.csv").write_text("keyword,count\n8k,22987\nsharp focus,22774\ngreg rutkowski,11552\n")
    targets = protocols.targets([f"parquet:{lexica}"], "test", [], tmp_path / "keywords.csv")
    assert targets.overlap("u0", (), SAID["u0"]).jaccard == pytest.approx(1 / 3)  # sharp focus is one of theirs
    without_column = protocols.targets([], "test", ["x, oil"] * 11 + ["x, 4k"] * 10, None)
    assert without_column.vocabulary.terms == {"oil"}  # "more than 10 times"
    assert without_column.overlap("?", ("y, oil",), "z, oil").jaccard == 1


def test_long_texts_are_cut_as_promptstealer_does() -> None:
    words = [f"word{n}" for n in range(60)]
    assert protocols.cut("a fox", lambda text: len(text.split()) <= 25) == "a fox"
    assert protocols.cut(" ".join(words), lambda text: len(text.split()) <= 25).split() == words[:20]
    terms = ",".join(words)
    assert protocols.cut(terms, lambda text: False).split(",") == words[:20]


def test_a_long_name_of_a_model_stays_whole(
    lexica: Path, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = make(
        lexica, said.replace("said=", f"{'name' * 20}=", 1), tmp_path / "out", measures=Measures(protocol="coco")
    )
    monkeypatch.setenv("COLUMNS", "80")
    print_figures(written)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "COCO captions" in shown


def test_kaggles_table_and_submissions(lexica: Path, said: str, tmp_path: Path) -> None:
    written = make(lexica, said, tmp_path / "out", measures=Measures(protocol="kaggle"))
    protocol = written["protocol"]
    assert protocol is not None
    assert protocol["rows"][0]["values"] == [written["models"][0]["figures"]["cosine"]["mean"]]
    (file,) = (tmp_path / "out" / "submissions").iterdir()
    (tmp_path / "prompts.csv").write_text(
        "imgId,prompt\n" + "".join(f'{i},"{prompt}"\n' for i, (_, _, prompt) in PROMPTS.items())
    )
    checked = submission.check(file, tmp_path / "prompts.csv")
    assert checked.problems == []
    assert checked.cosine is not None
    assert checked.cosine.mean == pytest.approx(protocol["rows"][0]["values"][0], abs=1e-6)
    make(lexica, said, tmp_path / "out", measures=Measures(protocol="kaggle"))  # its own folder is no stranger
    assert "| CLIP Interrogator | 0.45836 | as published" in (tmp_path / "out" / "report.md").read_text()
    assert "<td>0.45836</td>" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(BadInput, match="leave out --embedder"):
        make(lexica, said, tmp_path / "b", measures=Measures(protocol="kaggle"), settings=Settings(embedder="other"))


def test_cocos_table(lexica: Path, said: str, tmp_path: Path) -> None:
    written = make(lexica, said, tmp_path / "out", measures=Measures(protocol="coco"))
    protocol = written["protocol"]
    assert protocol is not None
    assert [column["label"] for column in protocol["columns"]] == ["CIDEr-D", "BLEU-4", "ROUGE-L"]
    predicted, truths = list(SAID.values()), [(prompt,) for _, _, prompt in PROMPTS.values()]
    expected = [
        100 * ngrams.cider_d(predicted, truths, tokenise=ngrams.ptb_line).mean(),
        100 * ngrams.coco_corpus_bleu(predicted, truths),
        100 * ngrams.rouge_l(predicted, truths, tokenise=ngrams.ptb_line).mean(),
    ]
    np.testing.assert_allclose(protocol["rows"][0]["values"], expected, rtol=1e-9)
    labels = [metric["label"] for metric in written["metrics"]]
    assert {"BLEU-4 (smoothed)", "BLEU-4 (COCO)"} <= set(labels)


def test_of_several_runs_every_column_of_cocos_table_is_the_mean(lexica: Path, said: str, tmp_path: Path) -> None:
    def coco(models: str, out: str) -> np.ndarray:
        (written,) = make(lexica, models, tmp_path / out, measures=Measures(protocol="coco"))["protocol"]["rows"]
        return np.array(written["values"])

    right = tmp_path / "right.csv"
    right.write_text("id,prediction\n" + "".join(f'{name},"{prompt}"\n' for name, (*_, prompt) in PROMPTS.items()))
    one, other = coco(said, "one"), coco(f"right={right}", "other")
    assert one[1] < other[1] == pytest.approx(100)
    np.testing.assert_allclose(coco(f"{said}|{right}", "both"), (one + other) / 2)


def test_an_unknown_protocol_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="promptstealer, kaggle, coco"):
        make(tmp_path / "none", "x.csv", tmp_path / "out", measures=Measures(protocol="imagenet"))


def test_the_table_by_one_command(
    lexica: Path, said: str, tmp_path: Path, tiny_checkpoint, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = ["report", "--data", f"parquet:{lexica}", "--split", "test", "--protocol", "promptstealer"]
    arguments += ["--clip", str(tiny_checkpoint("clip")), "--models", said, "--resamples", "200"]
    monkeypatch.setattr(sys, "argv", ["eval", *arguments, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    (published,) = (line for line in printed.splitlines() if "PromptStealer" in line and "0.6999" in line)
    assert "0.4477" in published
    (ours,) = (line for line in printed.splitlines() if line.startswith("│ said") and "measured here" in line)
    assert "0.1667" in ours
