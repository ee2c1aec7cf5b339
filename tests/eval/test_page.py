"""The page in a real browser, and what it draws."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import charts, page, store
from eval.anatomy import EVERY_TERM
from eval.results import Results, text_values

TRUTHS = [
    f"{animal} {place}" for animal in ("fox", "owl", "cat", "hen") for place in ("at sea", "on the ice", "in fog")
]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

DRIVER = """<!doctype html><iframe id=page src="report.html" style="width:390px;height:900px;border:0"></iframe>
<pre id=seen></pre><script>
page.onload = () => {
  const d = page.contentDocument, first = s => d.querySelector(s), seen = {};
  const cards = () => [...d.querySelectorAll(".card")].filter(c => !c.hidden).map(c => c.querySelector("img").alt);
  const models = () => [...d.querySelectorAll("table.sortable tbody th")].map(th => th.textContent.trim());
  seen.sticksOut = d.documentElement.scrollWidth - d.documentElement.clientWidth;
  seen.highest = cards();
  first("#order").click(); seen.lowest = cards();
  first("button[data-kind=best]").click(); seen.best = cards();
  first("button[data-kind='']").click();
  first("input").value = "OWL sea"; first("input").dispatchEvent(new Event("input")); seen.found = cards();
  first("table.sortable th[data-sort]").click(); seen.models = models();
  first("table.sortable th[data-sort]").click(); seen.reversed = models();
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
</script>"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report of two models on twelve pictures; each picture is better answered than the one before."""
    shares = np.linspace(0, 1, 12)
    texts = {
        "half": [truth[: int(len(truth) * share)] for truth, share in zip(TRUTHS, shares, strict=True)],
        "right": TRUTHS,
    }
    truths = [(truth,) for truth in TRUTHS]
    measured = Results(
        [f"{n:02}" for n in range(12)], truths, [None] * 12, list(texts), texts, text_values(texts, truths)
    )
    written = {
        "title": "A <test>",
        **{"kind": "score", "figures_only": False, "vocabulary": store.vocabulary_row(EVERY_TERM), "protocol": None},
        **store.circumstances(0, 300),
        "settings": {},
        "data": {
            **{"specs": ["x"], "names": ["x"], "noun": "pictures", "pictures": 12, "prompts": 12},
            **{"fingerprint": "0" * 64, "notes": ["One note."]},
        },
    }
    rows = [store.model_row(model, store.distinct(said)) for model, said in texts.items()]
    picture = lambda item: Image.new("RGB", (300, 200), (20 * item, 99, 99))  # noqa: E731
    store.finish(written, measured, rows, tmp_path, picture, gallery=4)
    return tmp_path


def test_title_and_texts_are_escaped(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert "<title>A &lt;test&gt;</title>" in html
    assert "<test>" not in html


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page's script was not run")
def test_the_page_works_in_a_browser_at_phone_width(folder: Path) -> None:
    (folder / "driver.html").write_text(DRIVER)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", "--dump-dom"]
    dom = subprocess.run(
        [*command, (folder / "driver.html").as_uri()], capture_output=True, text=True, timeout=300, check=True
    ).stdout
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)[1].replace("&amp;", "&"))
    assert seen["sticksOut"] == 0  # wide tables scroll inside their frames
    assert len(seen["highest"]) >= 8
    assert seen["highest"][0] == "picture 11"
    assert seen["lowest"] == seen["highest"][::-1]
    assert seen["best"] == [f"picture {n:02}" for n in (8, 9, 10, 11)]
    assert seen["found"] in ([], ["picture 03"])
    assert seen["models"][0].startswith("right")
    assert seen["reversed"][0].startswith("half")


def test_gallery_shows_best_worst_and_a_random_sample() -> None:
    values = np.array([0.1, 0.9, np.nan, 0.5, 0.7, 0.2])
    shown = page.choose(values, 2, seed=0)
    assert [item for item, kinds in shown.items() if "best" in kinds] == [1, 4]
    assert [item for item, kinds in shown.items() if "worst" in kinds] == [0, 5]
    assert sum("random" in kinds for kinds in shown.values()) == 2
    assert page.choose(values, 2, seed=0) == shown
    assert page.choose(np.array([np.nan]), 2, seed=0) == {0: ["random"]}


def test_numbers_as_readers_see_them() -> None:
    assert [page.number(v) for v in (None, 0.0, 0.12345, -0.5, 12.345)] == ["–", "0.000", "0.123", "-0.500", "12.3"]
    assert [page.signed(v) for v in (0.12, -0.12, None)] == ["+0.120", "-0.120", "–"]
    assert page.small_number(0.00234) == "0.0023"
    assert [page.p_value(p) for p in (0.0002, 0.04)] == ["< 0.001", "0.040"]


def test_histograms_share_their_axes() -> None:
    values = np.array([[0.0, 1.0], [0.1, 1.0], [0.1, np.nan], [0.9, 1.0]])
    edges, tallest = charts.bin_edges(values)
    assert (edges[0], edges[-1], tallest) == (0, 1, 3)
    bars = re.findall(r'<rect .*?height="([\d.]+)"', charts.histogram(values[:, 0], edges, tallest, 0))
    assert sorted(map(float, bars)) == pytest.approx([34 / 3, 34 / 3, 68 / 3], abs=0.01)
    assert "<rect" not in charts.histogram(np.array([np.nan]), *charts.bin_edges(np.array([[np.nan]])), 0)


def test_length_plot_has_a_point_for_every_bin_and_model() -> None:
    lengths = np.repeat(np.arange(1, 9), 8)
    values = np.stack([lengths / 10, np.full(64, np.nan)], axis=1)
    drawn = charts.by_length(lengths, values, ["a", "b"], [0, 1])
    assert drawn.count("<circle") >= 6
    assert "nan" not in drawn
    assert charts.by_length(np.full(64, 5), values, ["a", "b"], [0, 1]) == ""


def test_what_has_a_warning_is_never_the_best() -> None:
    report = {"best": {"cosine": "a"}}
    assert page.is_best(report, "cosine", {"label": "a", "warning": None})
    assert not page.is_best(report, "cosine", {"label": "a", "warning": "was trained on this"})
    assert not page.is_best(report, "cosine", {"label": "b", "warning": None})


def test_labels_are_text_and_break_at_their_punctuation() -> None:
    assert page.markdown("a|b_c [x](y)\n<b>") == r"a\|b\_c \[x\](y) &lt;b&gt;"
    assert page.breakable("runs/my-vit <b>") == "runs/<wbr>my-<wbr>vit &lt;b&gt;"


def many(tmp_path: Path, warning: str | None = None) -> tuple[str, str]:
    """A page and its Markdown: a captioner that is right, one that is not, one without answers, ten embedders."""
    truths = [(truth,) for truth in TRUTHS]
    texts = {"wrong": ["a car"] * 12, "right": TRUTHS, "silent": [None] * 12}
    texts |= {f"embedder [{n}]": [None] * 12 for n in range(10)}
    cosine = np.tile([0.1, 0.9, np.nan, *np.linspace(0.2, 0.8, 10)], (12, 1)) + np.linspace(0, 0.1, 12)[:, None]
    cosine += np.random.default_rng(0).normal(0, 0.001, cosine.shape)
    values = {"cosine": cosine, **text_values(texts, truths)}
    measured = Results([f"{n:02}" for n in range(12)], truths, [None] * 12, list(texts), texts, values)
    written = {
        "title": "A *test*",
        **{"kind": "score", "figures_only": False, "vocabulary": store.vocabulary_row(EVERY_TERM), "protocol": None},
        **store.circumstances(0, 2000),
        "settings": {},
        "data": {
            **{"specs": ["x"], "names": ["x"], "noun": "pictures", "pictures": 12, "prompts": 12},
            **{"fingerprint": "0" * 64, "notes": []},
        },
    }
    rows = [store.model_row(model) | {"warning": warning if model != "wrong" else None} for model in texts]
    store.finish(written, measured, rows, tmp_path, None, gallery=2)
    return (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()


def test_many_models(tmp_path: Path) -> None:
    html, markdown = many(tmp_path)
    assert {f"dot c{n}" for n in range(13)} <= set(re.findall(r"dot c\d+", html))  # a colour for each
    assert "--c12: hsl(" in html
    everything, texts = re.findall(r"<table class=\"sticky sortable dense\">.*?</table>", html, re.DOTALL)
    names = re.findall(r'<span class="dot c\d+"></span>(.*?)</span>', everything)
    assert (names[0], names[-2], names[-1], len(names)) == ("right", "wrong", "silent", 13)  # by the leading metric
    assert "BLEU" not in everything
    assert re.findall(r'<span class="dot c\d+"></span>(.*?)</span>', texts) == ["right", "wrong"]
    card = re.search(r"<article.*?</article>", html, re.DOTALL)[0]
    assert card.count("<li") == 3  # two texts, and all embedders on one line
    assert card.count('<li class="top"') == 1
    assert "no answer" in card
    assert markdown.startswith(r"# A \*test\*")
    assert r"| embedder \[0\] |" in markdown
    assert "### Of the texts" in markdown
    tables = [line.count("|") for line in markdown.splitlines() if line.startswith("| --- |")]
    assert tables[:2] == [4, 14]


def test_warnings_stand_in_one_box(tmp_path: Path) -> None:
    html, _ = many(tmp_path, warning="was <measured> on what it was trained on.")
    assert html.count('role="alert"') == 1
    assert html.count("<li>embedder [") == 10
    assert "&lt;measured&gt;" in html
    assert '<span class="badge">best</span>' not in html
