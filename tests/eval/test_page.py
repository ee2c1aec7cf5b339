"""The page in a real browser, and what it draws."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import charts, gallery, page, parts, store, wording
from eval.anew import draw_page
from eval.results import Results, text_values
from tests.eval.reports import begun

TRUTHS = [
    f"{animal} {place}" for animal in ("fox", "owl", "cat", "hen") for place in ("at sea", "on the ice", "in fog")
]
EXAMPLE = Path(__file__).parents[2] / "examples" / "report"
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
  const change = (id, value) => { first(id).value = value; first(id).dispatchEvent(new Event("change")); };
  const texts = (selector, within) => [...within.querySelectorAll(selector)].map(e => e.textContent.trim());
  const chart = () => [...d.querySelectorAll(".chart .row[data-model]")].map(row => texts(".model, .figure b", row));
  const two = () => [...d.querySelectorAll("#two tbody tr")].map(row => texts("th, td", row));
  first("input").value = ""; first("input").dispatchEvent(new Event("input"));
  seen.chart = chart();
  change("#source", 1);
  seen.chartOfPart = chart(); seen.cardsOfPart = cards(); seen.chosen = first("#chosen").textContent;
  seen.cell = first("td[data-metric=levenshtein_ratio] b").textContent;
  change("#source", -1);
  seen.cellAgain = first("td[data-metric=levenshtein_ratio] b").textContent;
  change("#measure", "length"); seen.meaning = first("#meaning").textContent; seen.lengths = chart();
  seen.two = two(); first("#swap").click(); seen.swapped = two();
  seen.where = d.querySelectorAll("#where tbody tr").length;
  first("th[data-m=rouge_l]").dispatchEvent(new page.contentWindow.MouseEvent("mouseover", { bubbles: true }));
  seen.tip = first("#tip").hidden ? "" : first("#tip").textContent;
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
</script>"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report of two models on twelve pictures of two sources; each picture is better answered than the one before."""
    shares = np.linspace(0, 1, 12)
    texts = {
        "half": [truth[: int(len(truth) * share)] for truth, share in zip(TRUTHS, shares, strict=True)],
        "right": TRUTHS,
    }
    truths = [(truth,) for truth in TRUTHS]
    measured = Results(
        [f"{n:02}" for n in range(12)],
        truths,
        [str(n) for n in range(12)],
        list(texts),
        texts,
        text_values(texts, truths),
        sources=["lexica"] * 7 + ["diffusiondb"] * 5,
    )
    written = begun("A <test>", 300, ["One note."])
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
    command += [f"--user-data-dir={folder / 'profile'}", "--disable-background-networking"]
    command += ["--virtual-time-budget=10000", "--dump-dom"]
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
    values = Results.load(folder / "per_image.parquet").values["levenshtein_ratio"]
    means = [f"{mean:.3f}" for mean in (*values.mean(axis=0), *values[7:].mean(axis=0))]
    assert seen["chart"] == [["right", means[1]], ["half", means[0]]]
    assert seen["chartOfPart"] == [["right", means[3]], ["half", means[2]]]
    assert set(seen["cardsOfPart"]) <= {f"picture {n:02}" for n in range(7, 12)}
    assert "5 of 12 pictures" in seen["chosen"]
    assert (seen["cell"], seen["cellAgain"]) in [(means[3], means[1]), (means[2], means[0])]
    assert seen["meaning"].startswith("Words in the predicted text")
    assert [row[0] for row in seen["lengths"]] == ["right", "half"]
    difference = values[:, 1].mean() - values[:, 0].mean()
    heading, half, right, between, *_, so = seen["two"][0]
    assert (heading, half, right, so) == ("Levenshtein ratio", means[0], means[1], "right is better")
    assert between == f"+{difference:.3f}"
    assert seen["swapped"][0][3] == f"-{difference:.3f}"
    assert seen["swapped"][0][-1] == "right is better"
    assert seen["where"] == 2
    assert seen["tip"].startswith("Longest common subsequence")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page was not printed")
def test_the_page_prints_on_a4(folder: Path) -> None:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--no-pdf-header-footer"]
    command += [f"--print-to-pdf={folder / 'page.pdf'}", (folder / "report.html").as_uri()]
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", (folder / "page.pdf").read_bytes())
    assert 1 < len(sizes) < 12
    for width, height in sizes:
        assert (float(width), float(height)) == pytest.approx((595.3, 841.9), abs=1.5)


def test_nothing_is_fetched_and_every_measure_is_defined(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert "@import" not in html
    assert "url(" not in html
    report = json.loads((folder / "report.json").read_text())
    words = json.loads(re.search(r'id="words">(.*?)</script>', html, re.DOTALL)[1])
    assert {name for model in report["models"] for name, row in model["figures"].items() if row["n"]} <= set(words)
    assert set(re.findall(r'data-m="(\w+)"', html)) <= set(words)


def test_the_answer_comes_first(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    says = re.search(r'<p class="says">(.*?)</p>', html, re.DOTALL)[1]
    assert says == "<b>right</b> comes nearest to the true prompts."
    assert html.index('id="answer"') < html.index('id="chart"') < html.index('id="all"') < html.index('id="gallery"')


def row_of(label: str, mean: float, warning: str | None = None) -> dict:
    return {"label": label, "warning": warning, "figures": {"cosine": {"mean": mean, "n": 9}}}


def difference_of(a: str, b: str, mean: float, p: float) -> dict:
    ends = {"low": mean - 0.01, "high": mean + 0.01}
    return {"metric": "cosine", "a": a, "b": b, "mean": mean, **ends, "p_holm": p, "significant": p < 0.05}


COSINE = {"name": "cosine", "higher_is_better": True}


def test_the_answer_says_by_how_much_and_how_sure() -> None:
    models = [row_of("a", 0.5), row_of("b", 0.49), row_of("c", 0.3)]
    rows = [difference_of("a", "b", -0.01, 0.6), difference_of("a", "c", -0.2, 0.001)]
    answer = page.answer({"differences": rows}, models, COSINE)
    assert (answer.best["label"], answer.next["label"], answer.is_sure) == ("a", "b", False)
    assert (answer.lead["mean"], answer.lead["low"], answer.lead["high"]) == pytest.approx((0.01, 0.0, 0.02))
    assert ([m["label"] for m in answer.equals], answer.ahead_of, answer.others) == (["b"], 1, 2)

    models[0]["warning"] = "was trained on these pictures"
    answer = page.answer({"differences": [difference_of("b", "c", -0.19, 0.001)]}, models, COSINE)
    assert (answer.best["label"], answer.is_sure) == ("b", True)
    assert [model["label"] for model in answer.left_out] == ["a"]

    alone = page.answer({"differences": []}, [row_of("a", 0.5)], COSINE)
    assert (alone.next, alone.is_sure, alone.others) == (None, False, 0)


def test_the_answer_where_low_is_good() -> None:
    metric = {"name": "cosine", "higher_is_better": False}
    ranked = page._ranked([row_of("far", 0.5), row_of("near", 0.2)], metric)
    assert [model["label"] for model in ranked] == ["near", "far"]
    answer = page.answer({"differences": [difference_of("far", "near", -0.3, 0.001)]}, ranked, metric)
    assert (answer.best["label"], answer.lead["mean"], answer.is_sure) == ("near", 0.3, True)
    row = {"a": "far", "b": "near", "mean": -0.3, "significant": True}
    assert wording.verdict(metric, row) == "near is better"


def test_parts_by_source_and_by_length() -> None:
    truths = [(" ".join(["word"] * (1 + number % 12)),) for number in range(48)]
    texts = {"a": [truth[0] for truth in truths], "b": ["word"] * 48}
    values = {"cosine": np.stack([np.arange(48.0), np.zeros(48)], axis=1)}
    sources = ["large"] * 30 + ["small"] * 18
    results = Results([str(n) for n in range(48)], truths, [None] * 48, ["a", "b"], texts, values, sources)
    of_data = parts.Parts.of(results)
    assert of_data.sources == ["large", "small"]
    assert of_data.lengths == ["1–4 words", "5–7 words", "8–12 words"]
    assert len(of_data.combinations) == 3 * 4 - 1
    rows = of_data.rows(1, 0)
    assert all(sources[row] == "small" and len(truths[row][0].split()) <= 4 for row in rows)
    (mean, low, high, count), (nothing, *_) = (
        of_model[0] for of_model in parts.figures(results, rows, ["a", "b"], ["cosine"])
    )
    assert (mean, count, nothing) == (pytest.approx(rows.mean(), rel=1e-5), len(rows), 0)
    assert low < mean < high
    differences = parts.pair_differences(results, of_data, ["a", "b"], "cosine")
    assert [(a, b, source, length) for a, b, source, length, _ in differences] == [
        *((0, 1, -1, length) for length in range(3)),
        *((0, 1, source, -1) for source in range(2)),
    ]
    assert differences[-1][4][0] == pytest.approx(-np.arange(30, 48).mean(), rel=1e-5)


def test_data_of_one_source_and_few_prompts_has_no_parts() -> None:
    results = Results(["0", "1"], [("a",), ("b",)], [None] * 2, ["m"], {"m": ["a", "b"]}, {}, ["one", "one"])
    of_data = parts.Parts.of(results)
    assert (of_data.sources, of_data.lengths, of_data.combinations) == ([], [], [])


def test_axes_are_round_and_hold_every_value() -> None:
    for values in ([0.203, 0.524], [-0.01, 0.3], [0.7, 0.72], [250.0, 253.0], [5.0], [0.0], [], [-3.0, -2.0]):
        axis = charts.Axis.of(values)
        assert all(-1e-6 <= axis.percent(value) <= 100 + 1e-6 for value in values)
        assert 3 <= len(axis.ticks) <= 13
        assert (axis.ticks[0], axis.ticks[-1]) == pytest.approx((axis.low, axis.high))
    assert charts.Axis.of([0.203, 0.524]).low == 0
    assert charts.Axis.of([0.7, 0.72]).low > 0.6


def test_the_page_is_drawn_anew_from_its_figures(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(report | {"kind": "score", "title": "Another"}))
    before = (folder / "report.html").read_text()
    draw_page(folder)
    after = (folder / "report.html").read_text()
    assert "<title>Another</title>" in after

    def table(html: str) -> str:
        return re.search(r'<section id="all">.*?</section>', html, re.DOTALL)[0]

    assert table(before) == table(after)


def test_the_example_is_as_the_page_is_drawn_now(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "report")
    draw_page(tmp_path / "report")
    for name in ("report.html", "report.md"):
        drawn, kept = ((folder / name).read_text() for folder in (tmp_path / "report", EXAMPLE))
        assert drawn == kept, "draw it anew: python -m eval page examples/report"


def test_gallery_shows_best_worst_and_a_random_sample() -> None:
    values = np.array([0.1, 0.9, np.nan, 0.5, 0.7, 0.2])
    shown = gallery.choose(values, 2, seed=0)
    assert [item for item, kinds in shown.items() if "best" in kinds] == [1, 4]
    assert [item for item, kinds in shown.items() if "worst" in kinds] == [0, 5]
    assert sum("random" in kinds for kinds in shown.values()) == 2
    assert gallery.choose(values, 2, seed=0) == shown
    assert gallery.choose(np.array([np.nan]), 2, seed=0) == {0: ["random"]}


def test_numbers_as_readers_see_them() -> None:
    assert [wording.number(v) for v in (None, 0.0, 0.12345, -0.5, 12.345)] == ["–", "0.000", "0.123", "-0.500", "12.3"]
    assert [wording.signed(v) for v in (0.12, -0.12, None)] == ["+0.120", "-0.120", "–"]
    assert wording.small_number(0.00234) == "0.0023"
    assert [wording.p_value(p) for p in (0.0002, 0.04)] == ["< 0.001", "0.040"]


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
    prompts = [str(number) for number in range(64)]
    drawn = charts.by_length(lengths, values, prompts, ["a", "b"], [0, 1])
    assert drawn.count("<circle") >= 6
    assert "nan" not in drawn
    assert charts.by_length(np.full(64, 5), values, prompts, ["a", "b"], [0, 1]) == ""


def test_intervals_of_the_length_plot_draw_pictures_of_one_prompt_together() -> None:
    """Ten pictures of a prompt, all of one value, tell no more than one of them."""
    lengths = np.repeat([3, 6, 9], 80)
    values = np.tile(np.repeat(np.linspace(0, 1, 8), 10), 3)[:, None]
    prompts = [f"{length} {value}" for length, value in zip(lengths, values[:, 0], strict=True)]

    def widest(prompts: list[str]) -> float:
        drawn = charts.by_length(lengths, values, prompts, ["a"], [0])
        ends = re.findall(r'class="mark thin" .*? y1="([\d.]+)" y2="([\d.]+)"', drawn)
        return max(float(low) - float(high) for low, high in ends)

    assert widest(prompts) > 2 * widest([str(number) for number in range(240)])


def test_what_has_a_warning_is_never_the_best() -> None:
    report = {"best": {"cosine": "a"}}
    assert wording.is_best(report, "cosine", {"label": "a", "warning": None})
    assert not wording.is_best(report, "cosine", {"label": "a", "warning": "was trained on this"})
    assert not wording.is_best(report, "cosine", {"label": "b", "warning": None})


def test_labels_are_text_and_break_at_their_punctuation() -> None:
    assert wording.markdown("a|b_c [x](y)\n<b>") == r"a\|b\_c \[x\](y) &lt;b&gt;"
    assert wording.breakable("runs/my-vit <b>") == "runs/<wbr>my-<wbr>vit &lt;b&gt;"


def many(tmp_path: Path, warning: str | None = None) -> tuple[str, str]:
    """A page and its Markdown: a captioner that is right, one that is not, one without answers, ten embedders."""
    truths = [(truth,) for truth in TRUTHS]
    texts = {"wrong": ["a car"] * 12, "right": TRUTHS, "silent": [None] * 12}
    texts |= {f"embedder [{n}]": [None] * 12 for n in range(10)}
    cosine = np.tile([0.1, 0.9, np.nan, *np.linspace(0.2, 0.8, 10)], (12, 1)) + np.linspace(0, 0.1, 12)[:, None]
    cosine += np.random.default_rng(0).normal(0, 0.001, cosine.shape)
    values = {"cosine": cosine, **text_values(texts, truths)}
    measured = Results([f"{n:02}" for n in range(12)], truths, [None] * 12, list(texts), texts, values)
    written = begun("A *test*", 2000, [])
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
    assert tables[:2] == [5, 12]


def test_warnings_stand_in_one_box(tmp_path: Path) -> None:
    html, _ = many(tmp_path, warning="was <measured> on what it was trained on.")
    assert html.count('role="alert"') == 1
    assert html.count("<li>embedder [") == 10
    assert "&lt;measured&gt;" in html
    assert 'data-m="best">best</span>' not in html
