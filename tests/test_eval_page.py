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
