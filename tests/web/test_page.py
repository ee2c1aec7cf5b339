"""The page in a real Chromium on a real server: caption, settings, downloads, compare; phone, dark, keys and focus."""

from __future__ import annotations

import csv
import difflib
import json
import os
import shlex
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

import captioner
from captioner.cli.main import app as command_line
from captioner.errors import BadImage, BadInput
from captioner.images import EXTENSIONS
from captioner.run.questions import COLUMNS
from captioner.serving.engine import Engine
from captioner.text.embedding import text_embedder
from captioner.text.similarity import indel_ratio
from captioner.web.routes import page as routes
from captioner.web.tools import below
from tests.browser import CHROMIUM, Browser, Page
from tests.web.conftest import Quick
from tests.web.served import served

PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
CAT, COFFEE = PICTURES / "cat.jpg", PICTURES / "coffee.jpg"
HOSTILE = "<img src=x onerror=document.title='run'> a painted cat"
TEXTS = "[...document.querySelectorAll('textarea.text')].map((area) => area.value)"

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page was not run")


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Callable[[str], Path]) -> Iterator[Engine]:
    """mini, and a tiny BLIP that attends to regions."""
    running = Quick(["mini", str(tiny_checkpoint("blip"))])
    running.start()
    running.wait_ready()
    yield running
    running.close(5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server may look into, and what it may not."""
    root = tmp_path_factory.mktemp("served") / "photos"
    (root / "more").mkdir(parents=True)
    (root / ".hidden").mkdir()
    shutil.copy(CAT, root / "cat.jpg")
    shutil.copy(COFFEE, root / "more" / "coffee.jpg")
    shutil.copy(CAT, root / ".hidden" / "cat.jpg")
    shutil.copy(CAT, root.parent / "outside.jpg")
    (root / "notes.txt").write_text("no picture")
    (root / "leads-out.jpg").symlink_to(root.parent / "outside.jpg")
    (root / "circle.jpg").symlink_to("circle.jpg")
    return root


@pytest.fixture(scope="module")
def address(engine: Engine, folder: Path) -> Iterator[str]:
    with served(folder, engine) as where:
        yield f"{where}/"


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page at its beginning. However a test ends: nothing broke, and nothing was fetched from elsewhere."""
    tab = opened(browser, address)
    yield tab
    assert tab.errors == []
    assert [asked for asked in tab.requests if not asked.startswith((address, f"blob:{address}"))] == []
    tab.close()


def opened(browser: Browser, address: str, view: str = "caption", **window: int | bool) -> Page:
    tab = browser.page(**window)
    tab.open(f"{address}#{view}")
    tab.wait(f"document.querySelector('#{view}').childElementCount && !document.querySelector('#{view}').hidden")
    return tab


def captioned(page: Page, count: int = 1) -> list[str]:
    """The texts, when there are so many."""
    return page.wait(f"document.querySelectorAll('[data-status=done]').length === {count} && {TEXTS}")


@pytest.fixture(scope="module")
def said() -> captioner.Prompt:
    """What the library says of the cat."""
    return captioner.load("mini").generate(CAT, quality="fast")


# --- Caption ---------------------------------------------------------------------------------------------------------


@in_browser
def test_a_dropped_picture_gets_its_text_and_candidates(page: Page, said: captioner.Prompt) -> None:
    page.drop("#caption", [CAT])
    assert captioned(page) == [said.text]
    shown = page.run("[...document.querySelectorAll('.candidates .said')].map((one) => one.textContent)")
    assert shown == [candidate.text for candidate in said.candidates]
    scores = page.run("[...document.querySelectorAll('.candidates .number')].map((one) => one.textContent)")
    assert scores == [f"{np.exp(candidate.score):.3f}" for candidate in said.candidates]
    page.click(".candidates li:nth-child(2) .use")
    assert page.run(TEXTS) == [said.candidates[1].text]
    page.click(".original")
    assert page.run(TEXTS) == [said.text]
    assert page.text(".count") == "1 of 1"
    headings = "[...document.querySelectorAll('h1')].filter((one) => one.checkVisibility())"
    assert page.run(f"{headings}.map((one) => one.textContent)") == ["Caption"]  # the first one is gone by now


@in_browser
def test_settings_change_the_text_as_the_shown_command_does(
    page: Page, address: str, said: captioner.Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.paste("#caption", [CAT])
    captioned(page)
    page.click(".work .open-settings")
    page.wait("document.querySelector('#set-num_candidates')?.placeholder")  # the model's own value
    page.fill("#set-quality", "fast")
    page.fill("#set-do_sample", "false")
    assert page.run("document.querySelector('[data-setting=temperature]').hidden")
    page.fill("#set-num_beams", "2")
    page.fill("#set-prefix", "it's sks")
    page.fill("#set-forbid", "cute, kitten")
    page.fill("#set-replace", "a cat=a lynx, solo=")
    page.click(".drawer .primary")
    page.wait("document.querySelector('textarea.text')?.value.startsWith(\"it's sks, \")")
    (text,) = captioned(page)
    command = page.text(".command-line code")
    assert "--num-beams 2" in command
    assert "--no-do-sample" in command
    assert "--replace 'a cat=a lynx' --replace solo=" in command
    monkeypatch.chdir(PICTURES)
    done = CliRunner().invoke(command_line, shlex.split(command)[1:])
    assert (done.exit_code, done.stdout.strip()) == (0, text)
    assert text != said.text
    hash_ = page.run("location.hash")
    assert "num_beams=2" in hash_
    page.run("location.reload()")
    page.wait("document.querySelector('.dropzone') && document.querySelector('.command-line code').textContent")
    page.wait("document.querySelector('.command-line code').textContent.includes('--num-beams 2')")
    assert page.run("location.hash") == hash_


@in_browser
def test_a_picture_that_fails_says_why_and_can_be_tried_again(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken <b>.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    page.drop("#caption", [CAT, broken])
    page.wait("document.querySelector('[data-status=failed] .retry')")
    assert len(captioned(page)) == 1
    assert "broken <b>.png" in page.text("[data-status=failed] .name")
    assert "broken" in page.text("[data-status=failed] .warning")
    assert page.text(".count") == "1 of 2 · 1 failed"
    page.click(".retry")
    page.wait("document.querySelector('[data-status=failed] .retry')")
    for _ in range(2):  # what is focused goes: the focus is handed on
        page.click("article header button")
        assert page.run("document.activeElement !== document.body && document.activeElement.isConnected")
    assert not page.run("document.querySelector('.dropzone').hidden")
    page.click(".toast button")  # undo
    assert page.run("document.querySelectorAll('article').length") == 1


@in_browser
def test_of_a_folder_the_pictures_are_taken_that_the_command_line_takes(page: Page, tmp_path: Path) -> None:
    for name in ("cat.jpg", "cat-masklabel.png", "._cat.jpg", "notes.txt"):
        shutil.copy(CAT, tmp_path / name)
    page.choose("#folder", [tmp_path])
    captioned(page)
    assert page.text(".picture .name") == "cat.jpg"
    assert page.text(".count") == "1 of 1"


@in_browser
def test_a_busy_server_is_asked_again_and_a_run_can_be_stopped(page: Page) -> None:
    page.run("""(() => { const real = window.fetch; window.refused = 0; window.hang = false;
        window.fetch = (path, options) => {
          if (!String(path).includes("v1/generate")) return real(path, options);
          if (window.refused < 2) { window.refused += 1;
            return Promise.resolve(new Response("{}", { status: 429, headers: { "Retry-After": "0" } })); }
          if (!window.hang) return real(path, options);
          return new Promise((_, no) => options.signal.addEventListener("abort",
            () => no(new DOMException("stopped", "AbortError")))); }; })()""")
    page.drop("#caption", [CAT])
    captioned(page)
    assert page.run("window.refused") == 2
    page.run("window.hang = true")
    page.drop("#caption", [COFFEE, PICTURES / "rocket.jpg"])
    page.wait("document.querySelectorAll('[data-status=running]').length === 2")
    page.click(".stop")
    page.wait("document.querySelectorAll('[data-status=waiting]').length === 2")
    assert page.text(".count") == "1 of 3"
    page.run("window.hang = false")
    page.click(".stop")  # it says "Go on" now
    captioned(page, 3)


@in_browser
def test_a_picture_that_is_asked_about_anew_is_asked_about_once(page: Page) -> None:
    page.drop("#caption", [CAT])
    captioned(page)
    page.run(
        "(() => { for (let time = 0; time < 3; time += 1) document.querySelector('.drawer .primary').click(); })()"
    )
    captioned(page)
    page.wait("document.querySelector('.stop').hidden")
    assert sum(asked.endswith("v1/generate") for asked in page.requests) == 2


@in_browser
def test_a_text_of_ones_own_is_lost_neither_by_asking_anew_nor_by_leaving(
    page: Page, tmp_path: Path, said: captioner.Prompt
) -> None:
    leaves = "window.dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    page.drop("#caption", [CAT])
    captioned(page)
    assert page.run(leaves)
    page.fill("textarea.text", "my own words")
    assert not page.run(leaves)
    for is_waited_for in (True, False):
        page.click(".again")
        if is_waited_for:
            page.wait(f"document.querySelector('textarea.text')?.value === {json.dumps(said.text)}")
        page.click(".toast button")
        page.wait("document.querySelector('textarea.text')?.value === 'my own words'")
    page.wait("document.querySelector('.stop').hidden")
    assert captioned(page) == ["my own words"]
    page.downloads_into(tmp_path)
    page.click("summary")
    page.click("[data-kind=jsonl]")
    page.wait(leaves)


@in_browser
def test_downloads_hold_what_is_shown(page: Page, tmp_path: Path, said: captioner.Prompt) -> None:
    page.downloads_into(tmp_path)
    page.drop("#caption", [CAT, COFFEE])
    captioned(page, 2)
    page.fill("article:last-child textarea", 'a cup, "hot"\nand red')
    for kind, name in (("sidecars", "captions.zip"), ("jsonl", "captions.jsonl"), ("csv", "captions.csv")):
        page.click(".download summary")
        page.click(f"[data-kind={kind}]")
        wait_for(page, tmp_path / name)
    with zipfile.ZipFile(tmp_path / "captions.zip") as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert texts == {"cat.txt": said.text + "\n", "coffee.txt": 'a cup, "hot"\nand red\n'}
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == ["cat.jpg", "coffee.jpg"]
    assert list(rows[0]) == ["file", *COLUMNS]
    assert rows[0]["precision"] == said.precision
    assert rows[0]["candidates"] == [
        asdict(candidate) | {"score": pytest.approx(candidate.score, abs=1e-5)} for candidate in said.candidates
    ]  # two pictures in one batch may differ from one in the last bit
    assert rows[1]["text"] == 'a cup, "hot"\nand red'
    with open(tmp_path / "captions.csv", encoding="utf-8", newline="") as stream:
        assert [row["text"] for row in csv.DictReader(stream)] == [row["text"] for row in rows]


def wait_for(page: Page, file: Path) -> None:
    """Until a download has landed; Chromium gives it its name when it is whole."""
    page.wait("true")
    for _ in range(3000):
        if file.exists():
            return
        page.run("new Promise((done) => setTimeout(done, 20))")
    raise AssertionError(f"{file.name} did not come")


@in_browser
@pytest.mark.parametrize("is_secure", [True, False], ids=["https", "http"])
def test_what_is_copied_is_in_the_clipboard(page: Page, said: captioner.Prompt, is_secure: bool) -> None:
    """Also where the browser lets no page of an unencrypted address write there by itself."""
    page.run(f"void Object.defineProperty(window, 'isSecureContext', {{ value: {json.dumps(is_secure)} }})")
    page.drop("#caption", [CAT])
    captioned(page)
    page.click(".card .copy")
    page.wait("document.querySelector('.toast')?.innerText === 'Copied.'")
    assert page.copied() == said.text
    page.click("[aria-label='Copy the command']")
    page.wait("document.querySelector('.toast')?.innerText === 'Command copied.'")
    assert page.copied() == page.text(".command-line code")
    assert page.run("document.activeElement.getAttribute('aria-label')") == "Copy the command"


@in_browser
def test_what_could_not_be_copied_is_told(page: Page) -> None:
    page.run("void Object.defineProperty(window, 'isSecureContext', { value: false })")
    page.run("void (document.execCommand = () => false)")
    page.drop("#caption", [CAT])
    captioned(page)
    page.fill("textarea.text", "my own words")
    page.click(".card .copy")
    page.wait("document.querySelector('.toast')?.innerText.includes('did not let it be copied')")
    assert not page.run("window.dispatchEvent(new Event('beforeunload', { cancelable: true }))")  # it is here alone


@in_browser
def test_what_a_file_carries_is_shown_as_text(page: Page, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", f"{HOSTILE}\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 7")
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "made.png", pnginfo=info)
    page.drop("#caption", [tmp_path / "made.png"])
    page.click("[data-panel=carried]")
    assert page.text(".carried blockquote") == HOSTILE
    assert "Euler a" in page.text(".carried dl")
    page.click(".use-carried")
    assert page.run(TEXTS) == [HOSTILE]
    page.click(".to-compare")
    page.wait("document.querySelector('#compare .marked .said')")
    assert page.run("document.title") == "Compare · captioner"
    assert page.run("document.querySelectorAll('img[src=x]').length") == 0


@in_browser
def test_similar_pictures_are_shown_where_the_server_may(
    browser: Browser, address: str, engine: Engine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"data": [str(folder), str(folder.parent)]}))
    found = [{"picture": name, "prompt": HOSTILE, "similarity": 0.5} for name in ("more/coffee.jpg", "outside.jpg")]
    monkeypatch.setattr(engine, "index", tmp_path)
    monkeypatch.setattr(engine.benches[0], "similar", lambda images, count: [{"similar": found} for _ in images])
    tab = opened(browser, address)
    tab.drop("#caption", [CAT])
    captioned(tab)
    tab.click(".chip[data-panel=similar]")
    tab.wait("document.querySelector('.similar img')?.naturalWidth > 0")
    assert tab.run("document.querySelectorAll('.similar img').length") == 1
    assert tab.run("document.querySelectorAll('.similar li').length") == 2
    assert tab.text(".similar .said") == HOSTILE
    assert tab.errors == []
    tab.close()


@in_browser
def test_where_a_model_looked_and_the_servers_own_folder(page: Page, engine: Engine) -> None:
    page.click(".dropzone .from-root")
    page.click(".subfolder")
    page.wait("!document.querySelector('.subfolder')")  # a click while the list is replaced is none
    page.click(".picker .file")
    page.click(".picker .take")
    captioned(page)
    assert page.run("document.querySelector('.chip[data-panel=attention]')") is None  # mini has none to show
    page.click(".work .open-settings")
    page.fill("#set-model", engine.models[1])
    page.wait("document.querySelector('#set-num_beams')?.placeholder")
    page.click(".drawer .primary")
    page.click(".chip[data-panel=attention]")
    page.wait("document.querySelector('.word[type]')")
    page.run("document.querySelector('.word[type]').focus()")
    assert page.run("document.querySelector('.frame canvas').width") == 480
    assert page.text(".word[type]") in page.run(TEXTS)[0]


@in_browser
def test_a_picture_that_the_browser_cannot_show_is_shown_by_the_server(
    browser: Browser, engine: Engine, tmp_path: Path
) -> None:
    """A TIFF of its folder; of one that was dropped nobody is shown where the model looked, on nothing."""
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "scan.tiff")
    with served(tmp_path, engine) as address:
        page = opened(browser, f"{address}/")
        page.click(".dropzone .from-root")
        page.click(".picker .file")
        page.click(".picker .take")
        captioned(page)
        page.click(".frame")
        page.wait("document.querySelector('.lightbox img').naturalWidth === 40")
        page.press("Escape")
        page.click(".clear")
        page.click(".dropzone .open-settings")
        page.fill("#set-model", engine.models[1])
        page.press("Escape")
        page.drop("#caption", [tmp_path / "scan.tiff"])
        captioned(page)
        page.wait("document.querySelector('.frame.unseen')")
        page.click(".chip[data-panel=attention]")
        assert page.text(".panel").startswith("This browser cannot show the picture")
        assert page.errors == []
        page.close()


@in_browser
def test_a_model_that_is_chosen_while_another_loads_is_asked_in_its_own_way(page: Page, engine: Engine) -> None:
    page.click(".dropzone .open-settings")
    page.wait("document.querySelector('#set-num_candidates')?.placeholder")
    page.run("""(() => { const real = window.fetch; const held = new Promise((go) => (window.go = go));
        window.fetch = async (path, options) => {
          if (String(path).includes("page/model")) await held;
          return real(path, options); }; })()""")
    page.fill("#set-model", engine.models[1])
    page.run("document.querySelector('.drawer').close()")
    page.drop("#caption", [CAT])
    page.wait("document.querySelector('[data-status=running]')")
    page.click(".work .open-settings")
    page.fill("#set-model", engine.models[0])
    page.run("document.querySelector('.drawer').close()")
    page.run("window.go()")
    captioned(page)
    assert page.run("document.querySelector('.chip[data-panel=attention]')") is None  # which is the other model's


@in_browser
def test_what_a_file_carries_is_shown_though_another_model_is_chosen_meanwhile(
    page: Page, engine: Engine, tmp_path: Path
) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a teal square\nSteps: 20, Sampler: Euler a, Seed: 7")
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "made.png", pnginfo=info)
    page.run("""(() => { const real = window.fetch; const held = new Promise((go) => (window.go = go));
        window.fetch = async (path, options) => {
          if (String(path).includes("page/model")) await new Promise(() => {});
          if (String(path).includes("v1/generate")) await ((window.isAsked = true), held);
          return real(path, options); }; })()""")
    page.drop("#caption", [tmp_path / "made.png"])
    page.wait("window.isAsked")
    page.click(".work .open-settings")
    page.fill("#set-model", engine.models[1])
    page.run("document.querySelector('.drawer').close()")
    page.run("window.go()")
    page.click("[data-panel=carried]")


# --- Compare ---------------------------------------------------------------------------------------------------------


@in_browser
def test_two_texts_and_how_alike_they_are(page: Page) -> None:
    left, right = "a cat on a red sofa, oil painting", "a dog on a red sofa, watercolour"
    page.run("location.hash = 'compare'")
    page.wait("document.querySelector('.tile b')?.innerText === '–'")
    assert page.run("document.querySelectorAll('.pair').length") == 0  # there is nothing to tell of yet
    page.fill(".side.left textarea", left)
    page.fill(".side.right textarea", right)
    page.wait(f"document.querySelector('.marked[data-side=right]')?.innerText.includes({json.dumps('watercolour')})")
    page.wait("document.querySelector('.marked .number')")
    words = "[...document.querySelectorAll('{}.word')].map((word) => word.textContent)"
    assert page.run(words.format("del")) == ["cat", "oil painting"]
    assert page.run(words.format("ins")) == ["dog", "watercolour"]
    a, b = text_embedder()([left, right])
    wanted = {
        "cosine": float(a @ b),
        "ratio": indel_ratio([left], [right])[0],
        "quick_ratio": difflib.SequenceMatcher(None, left, right, autojunk=False).quick_ratio(),
    }
    shown = {name: float(page.text(f"[data-figure={name}] b")) for name in wanted}
    assert shown == pytest.approx(wanted, abs=1e-4)


@in_browser
def test_predictions_against_truth_and_model_against_model(
    page: Page, engine: Engine, said: captioner.Prompt, tmp_path: Path
) -> None:
    rows = [("cat", "a cat"), ("coffee", "a cup of coffee"), ("lost", "nothing")]
    predicted = "".join(json.dumps({"file": f"out/{name}.png", "text": text}) + "\n" for name, text in rows)
    (tmp_path / "predicted.jsonl").write_text(predicted)
    truth = 'file_name,prompt\r\ncat.jpg,"a ""cat"", asleep"\r\ncoffee.jpg,a cup of coffee\r\n'
    (tmp_path / "truth.csv").write_text(truth)
    page.run("location.hash = 'compare'")
    page.wait("document.querySelector('.side textarea')")
    page.drop(".side.left", [tmp_path / "predicted.jsonl"])
    page.drop(".side.right", [tmp_path / "truth.csv"])
    page.wait("document.querySelectorAll('.measured').length === 2")
    shown = "[...document.querySelectorAll('.marked[data-side={}] .said')].map((text) => text.textContent)"
    assert page.run(shown.format("left")) == ["a cat", "a cup of coffee"]  # the least alike first
    assert page.run(shown.format("right")) == ['a "cat", asleep', "a cup of coffee"]
    assert page.text("#compare .status").endswith("without a partner of the same name: 1.")
    for side in ("left", "right"):
        page.click(f".side.{side} [data-kind=model]")
    page.drop("#compare", [CAT])
    page.wait("document.querySelector('.pair img') && document.querySelector('.marked .number')")
    models = [said.text, captioner.load(engine.models[1]).generate(CAT).text]
    assert page.run(shown.format("left")) + page.run(shown.format("right")) == models


@in_browser
def test_pictures_of_a_kind_that_browsers_do_not_know_are_compared_too(page: Page, tmp_path: Path) -> None:
    shutil.copy(CAT, tmp_path / "cat.qoi")
    page.run("location.hash = 'compare'")
    page.wait("document.querySelector('.side textarea')")
    page.drop("#compare", [tmp_path / "cat.qoi"])
    page.wait("document.querySelector('.strip img')?.alt === 'cat.qoi'")
    for field in ("#files", "#compare-pictures"):  # what a browser lets be chosen
        assert {"image/*", *EXTENSIONS} == set(page.run(f"document.querySelector('{field}').accept").split(","))


@in_browser
def test_models_are_asked_with_the_settings_that_caption_has_by_now(page: Page, said: captioner.Prompt) -> None:
    page.click("[data-view=compare]")
    page.wait("document.querySelector('.side textarea')")
    page.drop("#compare", [CAT])
    page.wait("document.querySelector('.side.right select')")
    page.fill(".side.right select", "mini")
    shown = "document.querySelector('.marked[data-side=right] .said')?.textContent"
    page.wait(f"{shown} === {json.dumps(said.text)}")
    page.click("[data-view=caption]")
    page.click(".dropzone .open-settings")
    page.wait("document.querySelector('#set-max_new_tokens')")
    page.fill("#set-max_new_tokens", "1")
    page.press("Escape")
    page.click("[data-view=compare]")
    shorter = captioner.load("mini").generate(CAT, quality="fast", max_new_tokens=1).text
    page.wait(f"{shown} === {json.dumps(shorter)}")
    assert shorter != said.text


# --- every view ------------------------------------------------------------------------------------------------------


@in_browser
def test_nothing_moves_where_less_motion_is_asked_for(browser: Browser, address: str) -> None:
    """Nor lies in its old place for a frame, which a duration of next to nothing on every element had it do."""
    page = opened(browser, address)
    page.run("document.querySelector('main').style.paddingTop = '99px'")
    assert page.run("getComputedStyle(document.querySelector('main')).paddingTop") == "99px"
    assert page.run("document.getAnimations().length") == 0
    page.scheme("light", reduced_motion=False)
    page.run("document.querySelector('.open-settings').click()")
    assert page.run("document.getAnimations().map((one) => one.animationName)") == ["slide"]
    page.close()


@in_browser
def test_phone_width_and_dark(browser: Browser, address: str, tmp_path: Path) -> None:
    phone = opened(browser, address, width=390, height=844, dark=True, touch=True)
    long = tmp_path / f"{'a-very-long-name-' * 8}.jpg"
    shutil.copy(CAT, long)
    phone.drop("#caption", [long, COFFEE])
    captioned(phone, 2)
    phone.fill("article textarea", "Donaudampfschifffahrtsgesellschaft" * 4)
    assert phone.sticks_out == 0
    phone.click(".download summary")
    assert "Sidecars" in phone.text(".download .card")
    assert phone.sticks_out == 0
    tools = phone.run("[...document.querySelectorAll('.work :is(button, summary)')].map((one) => one.innerText.trim())")
    assert {"Add", "Settings", "Download", "Clear"} <= {name.partition("\n")[0] for name in tools}  # for screen readers
    phone.click(".work .open-settings")
    assert phone.sticks_out == 0
    phone.press("Escape")
    phone.click("[data-view=compare]")
    phone.wait("document.querySelector('.side textarea')")
    phone.fill(".side.left textarea", "Donaudampfschifffahrtsgesellschaft" * 4)
    phone.wait("document.querySelector('.marked .number')")
    assert phone.sticks_out == 0
    ground = "getComputedStyle(document.body).backgroundColor"
    dark, light = "rgb(20, 22, 26)", "rgb(250, 249, 246)"
    assert phone.run(ground) == dark
    phone.click("#theme")
    phone.wait(f"{ground} === '{light}'")
    phone.run("window.mayLeave = true; location.reload()")
    phone.wait("document.querySelector('.side textarea')")
    phone.wait(f"{ground} === '{light}'")  # it was chosen
    phone.click("#theme")
    phone.click("#theme")  # as the system again
    phone.wait(f"{ground} === '{dark}'")
    phone.scheme("light")
    phone.wait(f"{ground} === '{light}'")
    assert phone.errors == []
    phone.close()


@in_browser
def test_texts_are_seen_whole_where_fields_do_not_grow_by_themselves(page: Page) -> None:
    """Safari's; also of a text that comes while another view is shown, and in a window that is made narrower."""
    page.run("CSS.supports = () => false")
    page.run("document.styleSheets[0].insertRule('textarea { field-sizing: fixed !important }')")
    page.drop("#caption", [CAT, COFFEE])
    page.run("location.hash = 'compare'")
    captioned(page, 2)
    page.fill("textarea.text", "a long text of a cat " * 30)
    page.run("location.hash = 'caption'")
    whole = "[...document.querySelectorAll('textarea.text')].every((one) => one.scrollHeight <= one.clientHeight + 1)"
    page.wait(whole)
    page.resize(500, 900)
    page.wait(whole)


@in_browser
def test_a_text_that_is_marked_beyond_the_drawer_leaves_it_open(page: Page) -> None:
    page.click(".dropzone .open-settings")
    page.wait("document.querySelector('#set-prefix')?.checkVisibility()")
    x, y = page.run("""(() => { const field = document.querySelector("#set-prefix");
        field.scrollIntoView({ block: "center" });
        const { x, y } = field.getBoundingClientRect(); return [x + 9, y + 9]; })()""")
    for end, is_open in ((x, True), (100, False)):
        page.send("Input.dispatchMouseEvent", type="mousePressed", x=end, y=y, button="left", clickCount=1)
        page.send("Input.dispatchMouseEvent", type="mouseReleased", x=100, y=y, button="left", clickCount=1)
        assert page.run("document.querySelector('.drawer').open") == is_open


@in_browser
def test_the_documentation_of_the_api_fits_a_phone(browser: Browser, address: str) -> None:
    phone = browser.page(width=360, height=740)
    phone.open(f"{address}docs")
    phone.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert phone.sticks_out == 0
    assert phone.run("document.querySelector('main h1 ~ details > h2') !== null")  # no level is left out
    phone.close()


@in_browser
def test_the_narrowest_screens(browser: Browser, address: str) -> None:
    """320 pixels are a small phone, and a window of 1,280 that is enlarged to 400 %."""
    narrow = opened(browser, address, width=320, height=600)
    narrow.drop("#caption", [CAT])
    captioned(narrow)
    assert narrow.sticks_out == 0
    narrow.click(".to-compare")
    narrow.wait("document.querySelector('.tile b')")
    assert narrow.sticks_out == 0
    assert narrow.run("[...document.querySelectorAll('.tile')].every((one) => one.scrollWidth <= one.clientWidth)")
    narrow.click("[data-view=review]")
    narrow.wait("document.querySelector('.review-picture img')")
    assert narrow.sticks_out == 0
    narrow.resize(360, 600)
    narrow.run("document.documentElement.style.width = '343px'")  # what a scrollbar leaves
    assert narrow.run("document.querySelector('.tools').getBoundingClientRect().right") <= 343
    assert narrow.errors == []
    narrow.close()


@in_browser
def test_every_control_has_a_name_and_every_picture_its_words(page: Page) -> None:
    page.drop("#caption", [CAT])
    captioned(page)
    page.click(".work .open-settings")
    page.wait("document.querySelector('#set-num_candidates')")
    nameless = page.run("""[...document.querySelectorAll("button, input, select, textarea, a[href], summary")]
        .filter((one) => !one.matches("[aria-hidden=true]") && !(one.textContent.trim() || one.labels?.length
          || one.getAttribute("aria-label") || one.getAttribute("aria-labelledby"))).map((one) => one.outerHTML)""")
    assert nameless == []
    assert page.run("[...document.querySelectorAll('img')].every((image) => image.hasAttribute('alt'))")
    page.press("Escape")  # the drawer gives the focus back
    assert page.run("document.activeElement.className") == "open-settings"


FOCUSED = "document.activeElement.className || document.activeElement.tagName"


@in_browser
def test_everything_is_reached_and_used_by_the_keyboard(page: Page, said: captioner.Prompt) -> None:
    page.drop("#caption", [CAT])
    captioned(page)
    page.run("document.querySelector('.skip').focus()")
    page.press("Tab")
    while page.run("document.activeElement !== document.body"):  # which it is after the last one
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.run("document.activeElement.dataset.reached = true")
        page.press("Tab")
    missed = page.run("""[...document.querySelectorAll("a, button, summary, textarea, input:not([type=file])")]
        .filter((one) => one.checkVisibility() && !one.dataset.reached).map((one) => one.className)""")
    assert missed == ["skip"]  # where it began
    page.run("document.querySelector('summary').focus()")
    page.press("Enter")
    for _ in range(4):
        assert page.run("document.querySelector('.download').open")
        page.press("Tab")
    assert not page.run("document.querySelector('.download').open")  # it would cover what comes next
    page.fill("textarea.text", "my own words")
    page.run("document.querySelector('.again').focus()")
    page.press("Enter")
    page.press("Enter")  # the button is gone, and nothing else is pressed
    page.wait(f"document.querySelector('textarea.text')?.value === {json.dumps(said.text)}")
    assert page.run(FOCUSED) == "row actions"
    page.press("Control+z")
    page.wait("document.querySelector('textarea.text')?.value === 'my own words'")
    page.run("document.querySelector('.clear').focus()")
    page.press("Enter")
    page.wait("document.querySelectorAll('article').length === 0")
    page.press("Control+z")
    page.wait("document.querySelectorAll('article').length === 1")


@in_browser
def test_the_focus_stays_where_something_takes_the_place_of_a_button(page: Page, tmp_path: Path) -> None:
    rows = [{"file": f"{number}.png", "text": f"a cat {number}"} for number in range(70)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page.run("location.hash = 'compare'")
    page.click(".side.left [data-kind=file]")
    page.run("document.querySelector('.choose-file').focus()")
    page.choose("#file-left", [tmp_path / "texts.jsonl"])
    page.wait("document.querySelector('.choose-file').innerText === 'Another file'")
    assert page.run(FOCUSED) == "choose-file"
    page.wait("document.querySelectorAll('.measured').length === 60")
    page.run("document.querySelector('.more').focus()")
    page.press("Enter")
    assert page.run("document.activeElement === document.querySelectorAll('.pair')[60]")
    page.run("window.fetch = () => Promise.reject(new TypeError('no way there'))")
    page.click(".side.left [data-kind=model]")
    page.drop("#compare", [CAT])
    page.wait("document.querySelector('.pair .retry')")
    page.run("document.querySelector('.pair .retry').focus()")
    page.press("Enter")
    page.wait(f"({FOCUSED}) === 'pair card failed'")


@in_browser
def test_a_server_with_a_key(browser: Browser, engine: Engine) -> None:
    """The browser asks for it as for any password; where it does not send it on, the page asks and remembers it."""
    with served(None, engine, api_key="a secret") as address:
        tab = opened(browser, address.replace("//", "//anyone:a%20secret@") + "/")
        tab.run("window.fetch = ((real) => (path, how) => real(path, { ...how, credentials: 'omit' }))(window.fetch)")
        tab.drop("#caption", [CAT])
        tab.wait("document.querySelector('dialog.ask[open] #key')")
        tab.fill("#key", "wrong")
        tab.click("dialog.ask .primary")
        tab.wait("document.querySelectorAll('dialog.ask[open]').length === 1 && !document.querySelector('#key').value")
        tab.fill("#key", "a secret")
        tab.click("dialog.ask .primary")
        captioned(tab)
        assert tab.run("localStorage.getItem('captioner.key')") == "a secret"
        assert all("401 (Unauthorized)" in error for error in tab.errors)
        tab.close()


# --- the routes ------------------------------------------------------------------------------------------------------


def test_nothing_outside_of_the_folder_is_listed_or_sent(folder: Path) -> None:
    assert routes.listed(folder, "") == {"path": "", "folders": ["more"], "pictures": ["cat.jpg"], "count": 1}
    assert routes.listed(folder, "more")["pictures"] == ["coffee.jpg"]
    assert routes.picture_inside(folder, "more/coffee.jpg") == folder / "more" / "coffee.jpg"
    for path in ("../outside.jpg", "leads-out.jpg", str(CAT), ".hidden/cat.jpg", "notes.txt", "no.jpg", "a\0b.jpg"):
        with pytest.raises(BadInput):
            routes.picture_inside(folder, path)
    for path in ("..", "/", ".hidden", "cat.jpg", "nowhere", "n" * 3000):
        with pytest.raises(BadInput):
            routes.listed(folder, path)
    with pytest.raises(BadInput, match="There is no picture"):
        routes.picture_inside(folder, f"{'n' * 3000}.jpg")
    with pytest.raises(BadImage, match="There is no file"):
        below(folder, f"{'n' * 3000}.jpg")


def test_a_folder_that_may_not_be_read_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)  # whoever runs as root may read all
    with pytest.raises(BadInput, match="'more' cannot be read"):
        routes.listed(folder, "more")


def test_sidecars_lie_inside_of_the_archive_under_names_of_their_own(tmp_path: Path) -> None:
    files = ["a.png", "sub/a.png", "a.jpg", "../../etc/passwd.png", "C:\\x\\b.png", "/c.png", "..", "A.webp", "a.jpg"]
    (tmp_path / "made.zip").write_bytes(routes.sidecars([{"file": file, "text": file} for file in files]))
    with zipfile.ZipFile(tmp_path / "made.zip") as archive:
        names = archive.namelist()
    assert len({name.lower() for name in names}) == len(files)
    assert names[:4] == ["a.txt", "sub/a.txt", "a.jpg.txt", "etc/passwd.txt"]
    assert not any(part in ("..", "") or ":" in part for name in names for part in name.split("/"))
    (tmp_path / "made.zip").write_bytes(routes.sidecars([{"file": "a.png", "text": ""}] * 4))
    with zipfile.ZipFile(tmp_path / "made.zip") as archive:
        assert archive.namelist() == ["a.txt", "a.png.txt", "a.png.2.txt", "a.png.3.txt"]
