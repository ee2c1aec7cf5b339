"""Review in a real browser, as somebody at a keyboard or on a phone would use it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioner.files.atomic import write_all
from captioner.review.sidecars import Sidecars
from captioner.serving.engine import Engine
from captioner.styles import STYLES
from tests.browser import CHROMIUM, Browser, Page
from tests.chat_server import serving
from tests.review.folders import picture, rows_of, write_rows
from tests.web.conftest import Quick
from tests.web.served import call, served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page's script was not run")

MANY = 300
AREA = "#review-area"
STEP = "document.querySelector('.review-step .name').textContent"
SAVED = "document.querySelector('.review-saved').innerText.trim() === 'Saved'"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred pictures: ten in a table of scores and candidates, the others with sidecars, the last with nothing,
    and one that is none."""
    folder = tmp_path_factory.mktemp("review") / "photos"
    folder.mkdir()
    for number in range(MANY):
        picture(folder / f"{number:03}.png", number)
        if 10 <= number < MANY - 4:
            (folder / f"{number:03}.txt").write_text(f"a cat {number}, oil painting, 8k\n")
    (folder / f"{MANY - 1:03}.png").write_bytes(b"no picture")
    write_rows(folder / "captions.jsonl", [f"{number:03}.png" for number in range(10)], score=-0.5)
    rows = rows_of(folder / "captions.jsonl")
    rows[7]["score"] = -3.25
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def address(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    engine = Quick(["mini"])
    engine.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CAPTIONER_CACHE", str(tmp_path_factory.mktemp("cache")))
        with served(photos, engine) as found:
            call(f"{found}/review/api/state")
            engine.wait_ready(120)
            yield found
    engine.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    yield from opened(browser, address)


def opened(browser: Browser, address: str, **how) -> Iterator[Page]:
    """Review, with its first picture shown; nothing may go wrong in it but what a broken picture says."""
    page = browser.page(**how)
    page.open(f"{address}/#review")
    page.wait("document.querySelector('.review-picture img:not(.coming)')")
    yield page
    expected = (f"{MANY - 1:03}.png", "422 (Unprocessable Entity)")
    assert [error for error in page.errors if not any(words in error for words in expected)] == []
    page.close()


def show(page: Page, name: str) -> None:
    """This picture alone, and its text."""
    page.fill(".review-filter input", f"name:{name}")
    page.wait(f"{STEP}.startsWith('{name}')")
    page.wait("document.querySelector('.review-candidates').children.length > 0")
    page.run("document.querySelector('.review-list').focus()")


def have_come(page: Page, count: int, name: str = "") -> None:
    """So many pictures, small and large: one that goes before it is answered would be an error of the page."""
    asked = f"performance.getEntriesByType('resource').filter((one) => /(small|large).name={name}/.test(one.name))"
    page.wait(f"{asked}.length === {2 * count}")


def value(page: Page) -> str:
    return page.run(f"document.querySelector('{AREA}').value")


def settles(page: Page, text: str) -> None:
    """The text that is shown, once it is."""
    page.wait(f"document.querySelector('{AREA}').value === {json.dumps(text)} && {SAVED}")


def focused(page: Page) -> str:
    return page.run("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")


def test_texts_are_edited_by_the_keyboard_alone(page: Page, photos: Path) -> None:
    page.press("j")
    page.press("j")
    page.press("k")
    page.wait(f"{STEP}.startsWith('001.png')")
    page.fill(".review-filter input", "cat name:02?.png")
    page.wait(f"{STEP}.startsWith('020.png · 1 of 10')")
    page.press("Escape")  # empties the filter, then leaves it
    page.fill(".review-filter input", "cat name:02?.png")
    page.wait(f"{STEP}.startsWith('020.png · 1 of 10')")
    page.press("ArrowDown")
    assert focused(page) == "review-list"
    settles(page, "a cat 20, oil painting, 8k")
    page.press("e")
    assert focused(page) == "review-area"
    page.type(", hello")
    page.wait(SAVED)  # by itself
    page.wait("document.querySelector('.review-count').innerText.includes('14 of 77 tokens')")
    assert (photos / "020.txt").read_text() == "a cat 20, oil painting, 8k, hello\n"
    page.wait("document.querySelector('.review-was ins').innerText === ', hello'")
    page.type(" you")
    page.press("Control+Enter")  # saves, and goes on in the text
    page.wait(f"{STEP}.startsWith('021.png')")
    assert focused(page) == "review-area"
    settles(page, "a cat 21, oil painting, 8k")
    assert (photos / "020.txt").read_text() == "a cat 20, oil painting, 8k, hello you\n"
    page.press("Escape")
    assert focused(page) == "review-list"
    page.press("Control+z")  # all that was typed into one text, and back to where that was
    page.wait(f"{STEP}.startsWith('020.png')")
    settles(page, "a cat 20, oil painting, 8k")
    assert (photos / "020.txt").read_text() == "a cat 20, oil painting, 8k\n"
    page.press("Control+Shift+Z")
    settles(page, "a cat 20, oil painting, 8k, hello you")
    page.click("[aria-label^='Undo']")
    settles(page, "a cat 20, oil painting, 8k")


def test_nothing_is_typed_over_a_text_that_is_not_there_yet(page: Page, photos: Path) -> None:
    """The picture is shown before its text is known: what was typed then would have taken the text's place."""
    page.run(
        "window.fetch = ((before) => (...given) => new Promise((answer) => "
        "setTimeout(() => answer(before(...given)), 150)))(window.fetch)"
    )
    page.fill(".review-filter input", "name:200.png")
    page.wait(f"{STEP}.startsWith('200.png')")
    page.run(f"document.querySelector('{AREA}').focus()")
    page.type("no")
    settles(page, "a cat 200, oil painting, 8k")
    page.type("!")
    page.wait("document.querySelector('.review-was ins')")
    page.wait(SAVED)
    assert (photos / "200.txt").read_text() in ("a cat 200, oil painting, 8k!\n", "!a cat 200, oil painting, 8k\n")


def test_candidates_and_the_model(page: Page, photos: Path) -> None:
    show(page, "003.png")
    settles(page, "text of 003")
    page.press("2")
    settles(page, "another of 003")
    assert rows_of(photos / "captions.jsonl")[3]["text"] == "another of 003"
    page.press("r")  # other candidates; a text that is there is not replaced
    page.wait("!document.querySelector('.review-candidates').innerText.includes('another of 003')")
    assert value(page) == "another of 003"
    page.press("1")
    first = page.text(".review-candidates button span:not(.number)")
    settles(page, first)
    page.wait(SAVED)
    page.click("[aria-label='What was changed'] button")
    settles(page, "text of 003")
    page.press("e")
    second = page.text(".review-candidates li:nth-child(2) button span:not(.number)")
    page.send("Input.dispatchKeyEvent", type="rawKeyDown", key="™", code="Digit2", modifiers=1)  # a Mac's Alt+2
    settles(page, second)
    page.press("Control+z")
    settles(page, "text of 003")


def test_keys_of_an_input_method_choose_among_its_words(page: Page) -> None:
    """Japanese is written so; the arrow left the filter, and Escape the text."""
    page.wait(f"document.querySelector('{AREA}').value !== ''")
    for key, field, tag in (("/", ".review-filter input", "INPUT"), ("e", AREA, "TEXTAREA")):
        page.press(key)
        before = page.run(f"document.querySelector('{field}').value")
        page.send("Input.imeSetComposition", text="ねこ", selectionStart=2, selectionEnd=2)
        for pressed in ("ArrowDown", "Escape"):
            page.press(pressed)
            assert page.run("document.activeElement.tagName") == tag, pressed
        page.send("Input.imeSetComposition", text="", selectionStart=0, selectionEnd=0)
        page.fill(field, before)
        page.press("Escape")
        assert page.run("document.activeElement.tagName") != tag


def waits(page: Page, what: str) -> None:
    """What is asked first of the server by this address waits for `go()`; `edits` counts the texts that are sent."""
    page.run(
        """(() => { const real = window.fetch; window.edits = 0; window.go = null;
        window.fetch = async (path, options) => {
        window.edits += String(path).includes("api/edit");
        if (String(path).endsWith("WHAT") && !window.go) await new Promise((resolve) => (window.go = resolve));
        return real(path, options); }; })()""".replace("WHAT", what)
    )


def test_a_candidate_of_a_picture_that_is_left_goes_to_no_other(page: Page, photos: Path) -> None:
    """It waits for what was typed before to be saved, and the next picture is shown meanwhile."""
    waits(page, "api/edit")
    page.fill(".review-filter input", "name:004.png OR name:005.png")
    page.wait(f"{STEP}.startsWith('004.png · 1 of 2')")
    page.wait("document.querySelector('.review-candidates button')")
    page.run("document.querySelector('.review-list').focus()")
    page.press("e")
    page.type(", mine")
    page.press("Escape")
    page.press("2")
    page.press("j")
    page.wait(f"{STEP}.startsWith('005.png')")
    page.run("window.go()")
    page.wait("document.querySelector('.toast')?.innerText.includes('Candidate 2 for 004.png')")
    settles(page, "text of 005")
    assert [row["text"] for row in rows_of(photos / "captions.jsonl")[4:6]] == ["text of 004, mine", "text of 005"]


@pytest.mark.parametrize(("number", "is_left"), [(210, False), (212, True)])
def test_a_text_that_waited_for_one_that_was_lost_is_saved(
    page: Page, photos: Path, number: int, is_left: bool
) -> None:
    """It was told that somebody else had changed the text."""
    page.run("""(() => { const real = window.fetch; window.go = null;
        window.fetch = async (path, options) => {
        if (String(path).endsWith("api/edit") && !window.go) {
          await new Promise((resolve) => (window.go = resolve));
          throw new TypeError("down"); }
        return real(path, options); }; })()""")
    page.fill(".review-filter input", f"name:{number}.png OR name:{number + 1}.png")
    page.wait(f"{STEP}.startsWith('{number}.png · 1 of 2')")
    add(page, number, ", one")
    page.wait("window.go !== null")
    page.press("e")
    page.type(", two")
    page.press("Escape")
    if is_left:
        page.press("j")
        page.wait(f"{STEP}.startsWith('{number + 1}.png')")
    page.run("window.go()")
    wait_for_text(page, photos / f"{number}.txt", f"a cat {number}, oil painting, 8k, one, two\n")
    page.wait(SAVED)
    assert page.run(MARKED) == ""


def test_what_the_model_says_of_a_picture_that_is_left_goes_to_no_other(page: Page, photos: Path) -> None:
    """Its row is asked for once more, and one without a text is shown meanwhile."""
    (photos / "297.txt").unlink(missing_ok=True)
    page.click("[aria-label='Look at the folder again']")
    page.fill(".review-filter input", "name:295.png OR name:297.png")
    page.wait(f"{STEP}.startsWith('295.png · 1 of 2')")
    page.wait(f"document.querySelector('{AREA}').value.startsWith('a cat 295') && {SAVED}")
    page.run("document.querySelector('.review-list').focus()")
    waits(page, "api/row")
    page.press("r")
    page.wait("window.go !== null")
    page.press("j")
    page.wait(f"{STEP}.startsWith('297.png')")
    page.run("window.go()")
    page.wait("!document.querySelector('[title^=\"Ask the model again\"]').disabled")  # it has its answer
    assert page.run("window.edits") == 0


OFFERED = "[...document.querySelectorAll('.review-completions:not([hidden]) bdi')].map((one) => one.innerText).join()"


@pytest.fixture
def tagged(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Review of three pictures with tags in their sidecars, and one without."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        picture(tmp_path / "photos" / f"{number}.png", number)
    for number, text in enumerate(("oil lamp, Oil painting", "Oil painting, oil on canvas", "oil on canvas")):
        (tmp_path / "photos" / f"{number}.txt").write_text(f"{text}, Oil painting of a cat\n")
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    with served(tmp_path / "photos", engine, tags=("oil on canvas", "zebra crossing", ">_<")) as address:
        yield address


def test_terms_of_the_folder_are_completed_by_the_keyboard(browser: Browser, tagged: str, tmp_path: Path) -> None:
    page = next(tabs := opened(browser, tagged))
    for _ in range(3):
        page.press("j")
    page.wait(f"{STEP}.startsWith('3.png') && document.querySelector('{AREA}').placeholder")
    page.press("e")
    page.type("canv")
    page.wait(f"{OFFERED} === 'oil on canvas'")
    page.press("Control+a")
    page.type("zeb")  # of the list that the server was started with
    page.wait(f"{OFFERED} === 'zebra crossing'")
    page.press("Control+a")
    page.type("o")
    page.type("i")
    page.wait(f"{OFFERED} === 'Oil painting of a cat,oil on canvas,Oil painting,oil lamp'")  # the most used first
    page.press("ArrowDown")
    page.press("ArrowUp")  # round to the last
    active = "document.activeElement.getAttribute('aria-activedescendant')"
    assert page.run(f"document.getElementById({active}).innerText").startswith("oil lamp")
    assert page.run("document.activeElement.getAttribute('role')") == "combobox"
    page.press("Enter")
    assert (value(page), page.run(OFFERED)) == ("oil lamp", "")
    assert page.run("document.activeElement.getAttribute('role')") is None
    page.press("Control+z")  # the browser's own: the letters that it took the place of
    assert value(page) == "oi"
    page.press("ArrowRight")
    page.type("l p")
    page.wait(f"{OFFERED} === 'Oil painting of a cat,Oil painting'")
    page.press("Tab")
    assert (value(page), focused(page)) == ("Oil painting of a cat", "review-area")
    page.type(" by a lake")  # a sentence
    assert page.run(OFFERED) == ""
    page.type(", oil on")
    page.wait(f"{OFFERED} === 'oil on canvas'")
    page.press("Enter")  # none was chosen: a line break
    assert (value(page), page.run(OFFERED)) == ("Oil painting of a cat by a lake, oil on\n", "")
    page.type("oil l")
    page.wait(f"{OFFERED} === 'oil lamp'")
    page.press("Escape")
    assert (page.run(OFFERED), focused(page)) == ("", "review-area")
    page.press("Backspace")
    page.wait(f"{OFFERED}.endsWith('oil lamp')")
    page.press("ArrowLeft")  # within a term nothing is offered
    page.wait(f"{OFFERED} === ''")
    page.type("!")
    assert page.run(OFFERED) == ""
    page.press("Control+Enter")
    page.wait("document.querySelector('.toast')?.innerText === 'That was the last picture.'")
    assert (tmp_path / "photos" / "3.txt").read_text() == "Oil painting of a cat by a lake, oil on\noil!\n"
    tabs.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_terms_are_completed_on_a_phone_and_nothing_moves(browser: Browser, tagged: str, dark: bool) -> None:
    page = next(tabs := opened(browser, tagged, width=390, height=700, dark=dark, touch=True))
    page.wait(f"document.querySelector('{AREA}').value.startsWith('oil lamp')")
    page.press("e")
    page.type(", oil ")
    page.wait(f"{OFFERED}.split(',').length === 4")
    page.wait(SAVED)
    places = """[document.documentElement.scrollHeight, ...['.review-count', '.review-candidates'].map((one) =>
        document.querySelector(one).getBoundingClientRect().top)]"""
    offering = page.run(places)
    page.press("Escape")
    assert page.run(places) == offering
    page.press("Backspace")
    page.wait(f"{OFFERED}.split(',').length === 4")
    top, bottom = page.run(
        "(({ top, bottom }) => [top, bottom])(document.querySelector('.review-completions').getBoundingClientRect())"
    )
    assert 0 <= top < bottom <= 700
    assert page.sticks_out == 0
    page.click(".review-completions li:nth-child(4)")
    assert value(page) == "oil lamp, Oil painting, Oil painting of a cat, oil lamp"
    assert page.run(OFFERED) == ""
    assert focused(page) == "review-area"
    tabs.close()


def test_filter_sort_and_what_is_wrong_with_a_filter(page: Page) -> None:
    page.fill(".review-filter input", "cat (tokens:many")
    page.wait("!document.querySelector('.review-wrong').hidden")
    assert page.text(".review-wrong mark") == "many"
    assert page.run("document.querySelector('.review-filter input').getAttribute('aria-invalid')") == "true"
    page.fill(".review-filter input", "NOT cat score:<0")
    page.wait(f"document.querySelector('.review-wrong').hidden && {STEP}.includes('of 10')")
    page.fill(".review-head select", "score")
    page.wait("document.querySelector('.review-row .name').innerText === '007.png'")  # the worst
    page.click(".review-chips button:nth-child(2)")
    page.wait("document.querySelector('.review-filter input').value === 'is:empty'")
    page.wait("document.querySelectorAll('.review-row').length === 4")


def test_many_texts_change_at_once_and_roll_back(page: Page, photos: Path) -> None:
    page.fill(".review-filter input", "name:05?.png")
    page.wait(f"{STEP}.includes('of 10')")
    page.run("document.querySelector('.review-list').focus()")
    page.press("b")
    assert focused(page) == "review-find"
    page.type("(\\w+) cat")
    page.fill("#review-is_pattern", True)
    page.fill("#review-replacement", "\\1 tabby")
    page.wait("document.querySelector('.review-bulk .primary').innerText === 'Change 10 texts'")
    page.wait("document.querySelector('.review-examples del').innerText === 'cat'")
    page.click("[value=all] + span")
    page.wait("document.querySelector('.review-bulk .primary').innerText === 'Change 286 texts'")
    page.click("[value=filtered] + span")
    page.wait("document.querySelector('.review-bulk .primary').innerText === 'Change 10 texts'")
    page.click(".review-bulk .primary")
    page.wait("document.querySelector('.toast')?.innerText.includes('10 texts')")
    page.wait(SAVED)
    assert (photos / "055.txt").read_text() == "a tabby 55, oil painting, 8k\n"
    page.fill("#review-find", "a(")
    page.wait("document.querySelector('.review-bulk .review-wrong')?.innerText.includes('not valid')")
    page.click(".toast button")
    page.wait("document.querySelector('.toast')?.innerText.startsWith('Taken back')")
    assert {(photos / f"{number:03}.txt").read_text() for number in range(50, 60)} == {
        f"a cat {number}, oil painting, 8k\n" for number in range(50, 60)
    }
    page.press("Escape")
    assert focused(page) == "review-list"  # where it was before
    page.press("h")
    page.wait("document.querySelector('.review-steps .gone')?.innerText.startsWith('Replace')")


def test_before_against_after_is_a_comparison(page: Page) -> None:
    show(page, "110.png")
    settles(page, "a cat 110, oil painting, 8k")
    page.press("e")
    page.type(", fog")
    page.wait(SAVED)
    page.press("Escape")
    page.press("h")
    page.wait("document.querySelector('.review-steps button')")
    page.click(".review-drawer .content > button")
    page.wait("!document.querySelector('#compare').hidden && document.querySelector('#compare ins, #compare .word')")
    assert "110.png" in page.text("#compare")


def test_a_selection_and_a_term_taken_out(page: Page, photos: Path) -> None:
    page.fill(".review-filter input", "name:06?.png")
    page.wait(f"{STEP}.includes('of 10')")
    page.run("document.querySelector('.review-list').focus()")
    page.press("x")
    page.press("j")
    page.press("x")
    assert page.text(".review-picked").startswith("2 selected")
    page.press("t")
    page.wait("document.querySelector('[data-term=\"oil painting\"]')")
    page.click("[data-term='oil painting']")
    page.wait("document.querySelector('.review-filter input').value === 'term:\"oil painting\"'")
    page.wait("document.activeElement.matches('[data-term=\"oil painting\"][aria-pressed=true]')")  # the list is new
    page.click("[data-term='oil painting']")  # again excludes
    page.wait("document.querySelector('.review-filter input').value === 'NOT term:\"oil painting\"'")
    page.wait("document.querySelector('[data-term=\"oil painting\"].excluded')")
    page.click("[aria-label='Delete “oil painting” everywhere']")
    page.wait("document.querySelector('#review-term')?.value === 'oil painting'")
    page.wait("document.querySelector('.review-bulk .primary').innerText === 'Change 2 texts'")  # of the two
    page.press("Enter")
    page.wait("document.querySelector('.toast')?.innerText.includes('2 texts')")
    assert (photos / "060.txt").read_text() == "a cat 60, 8k\n"
    page.press("Escape")
    page.press("Control+z")
    page.wait("document.querySelector('.toast')?.innerText.startsWith('Taken back')")
    assert (photos / "060.txt").read_text() == "a cat 60, oil painting, 8k\n"


def test_the_folder_is_captioned_and_one_undo_takes_it_back(page: Page, photos: Path) -> None:
    page.click("[title='Caption the folder']")
    page.wait("document.querySelector('dialog[open]')")
    assert "The 4 without a text" in page.text("dialog")
    page.press("Escape")
    page.wait("!document.querySelector('dialog')")
    assert "Caption" in page.run("document.activeElement.innerText")
    page.press("Enter")
    page.wait("document.querySelector('dialog[open] .primary')")
    page.click("dialog .primary")
    page.wait("document.querySelector('.toast')?.innerText.startsWith('3 captioned, 1 failed')")
    assert (photos / f"{MANY - 2:03}.txt").read_text().strip()
    page.fill(".review-filter input", "is:failed")  # a row with its reason and a way to try again
    page.wait(f"document.querySelector('.review-row.failed .text')?.innerText.includes('{MANY - 1:03}.png')")
    page.wait("document.querySelector('.review-problem').innerText.includes('Try again')")
    page.run("document.querySelector('.review-list').focus()")
    page.press("Control+z")
    page.wait("document.querySelector('.toast')?.innerText.startsWith('Taken back: Caption 4 pictures with mini')")
    page.wait(SAVED)
    assert not list(photos.glob("29[6-9].txt"))


def test_captioning_can_be_stopped(page: Page, photos: Path) -> None:
    before = [(photos / f"{number:03}.txt").read_text() for number in range(150, MANY - 4)]
    page.fill(".review-filter input", "name:1??.png OR name:2??.png")
    page.wait(f"{STEP}.includes(' of 200')")
    page.click("[title='Caption the folder']")
    page.click("[value=shown] + span")
    page.click("dialog .primary")
    page.wait("document.querySelector('.review-run progress')?.value > 1")
    page.run("location.reload()")  # the server goes on, and the page finds it
    page.wait("document.querySelector('.review-run:not([hidden]) progress')?.value > 1")
    page.click(".review-run button")
    page.wait("document.querySelector('.toast')?.innerText.startsWith('Stopped: ')")
    assert page.run("document.querySelector('.review-run').hidden")
    page.click(".toast button")
    page.wait("document.querySelector('.toast')?.innerText.startsWith('Taken back: Caption 200 pictures')")
    page.wait(SAVED)
    assert [(photos / f"{number:03}.txt").read_text() for number in range(150, MANY - 4)] == before


def test_a_model_is_asked_by_the_settings_that_caption_has(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a", "b"):
        picture(photos / f"{name}.png")
    (photos / "a.txt").write_text("a cat\n")
    with serving() as server:
        engine = Engine([f"openai:{server.address}#painter"])
        engine.start()
        with served(photos, engine) as address:
            page = next(tabs := opened(browser, address))
            page.click("[title='Caption the folder']")
            page.wait("document.querySelector('.review-asked span')?.innerText.startsWith('Everything as the model')")
            assert page.run("document.querySelector('#review-existing').disabled")  # of those without a text
            page.click(".review-asked button")
            page.wait("document.querySelector('dialog[open] #set-style')?.checkVisibility()")
            page.fill("#set-style", "tags")
            page.fill("#set-prefix", "sks style")
            page.press("Escape")
            page.click("[data-view=review]")
            page.click("[title='Caption the folder']")
            page.wait("document.querySelector('.review-asked span')?.innerText === 'Style: tags · Prefix: “sks style”'")
            page.click("[value=shown] + span")
            page.fill("#review-existing", "append")
            page.click(".review-dialog .primary")
            page.wait("document.querySelector('.toast')?.innerText.startsWith('2 captioned')")
            page.wait(SAVED)
            said = "sks style, a black square, oil on canvas"
            assert (photos / "a.txt").read_text() == f"a cat, {said}\n"
            page.run("document.querySelector('.review-list').focus()")
            page.press("Control+z")
            settles(page, "a cat")
            page.press("r")
            page.wait("document.querySelectorAll('.review-candidates button').length === 5")
            assert said in page.text(".review-candidates button")
            assert all(STYLES["tags"].instruction in json.dumps(body) for body in server.bodies)
            tabs.close()
        engine.close()


@pytest.mark.parametrize("when", ["begun", "running"])
def test_settings_that_cannot_be_are_told(page: Page, when: str) -> None:
    kept = {"forbid": "cat", "require": "cat"} if when == "begun" else {"min_new_tokens": "900"}
    page.run(f"localStorage.setItem('captioner.settings', {json.dumps(json.dumps(kept))})")
    page.click("[title='Caption the folder']")
    page.click("dialog .primary")
    if when == "begun":
        page.wait("document.querySelector('dialog .review-wrong').innerText.startsWith('Forbidden and required')")
    else:
        page.wait("document.querySelector('.toast')?.innerText.startsWith('min_new_tokens')")
    assert not page.run("document.querySelector('.review-run:not([hidden])')")


def test_somebody_else_changes_a_text_meanwhile(page: Page, photos: Path) -> None:
    show(page, "100.png")
    settles(page, "a cat 100, oil painting, 8k")
    (photos / "100.txt").write_text("by hand\n")
    page.press("e")
    page.type(", mine")
    page.wait("document.querySelector('.review-problem').innerText.includes('by hand')")
    assert (photos / "100.txt").read_text() == "by hand\n"
    page.click(".review-problem button")  # keep mine
    page.wait(SAVED)
    assert (photos / "100.txt").read_text() == "a cat 100, oil painting, 8k, mine\n"


def test_a_candidate_takes_no_texts_place_while_it_is_open_which_of_two_stays(page: Page, photos: Path) -> None:
    """What was typed is in no file yet, and would be nowhere."""
    page.fill(".review-filter input", "name:195.png")
    settles(page, "a cat 195, oil painting, 8k")
    (photos / "195.txt").write_text("by hand\n")
    add(page, 195, ", mine")
    page.wait("document.querySelector('.review-problem').innerText.includes('by hand')")
    page.press("r")
    page.wait("document.querySelector('.review-candidates button')")
    page.press("1")
    page.wait("document.activeElement.innerText === 'Keep mine'")
    assert value(page) == "a cat 195, oil painting, 8k, mine"
    page.click(".review-problem button")
    wait_for_text(page, photos / "195.txt", "a cat 195, oil painting, 8k, mine\n")


def test_only_the_rows_that_are_seen_exist(page: Page) -> None:
    count = "document.querySelectorAll('.review-row').length"
    assert page.run(count) < 40
    page.press("End")
    page.wait(f"{STEP}.includes('{MANY} of {MANY}')")
    page.wait(f"document.querySelector('[aria-current] .name')?.innerText === '{MANY - 1:03}.png'")
    assert page.run(count) < 40
    top, bottom, low, high = (
        page.run("""(() => { const l = document.querySelector('.review-list').getBoundingClientRect();
        const r = document.querySelector('.review-row[aria-current]').getBoundingClientRect();
        return [l.top, l.bottom, r.top, r.bottom]; })()""")
    )
    assert top <= low < high <= bottom + 1


NAMELESS = """[...document.querySelectorAll(".review button, .review input, .review select, .review textarea")]
    .filter((e) => e.getClientRects().length)
    .filter((e) => !(e.getAttribute("aria-label") || e.innerText?.trim() || e.labels?.length))
    .map((e) => e.outerHTML)"""


def test_everything_has_a_name_and_the_focus_is_never_lost(page: Page) -> None:
    assert page.run(NAMELESS) == []
    page.run("document.querySelector('.review-list').focus()")
    for key in ("b", "t", "h", "?"):
        page.press(key)
        page.wait("document.querySelector('dialog[open], .review-drawer:not([hidden])')")
        assert page.run(NAMELESS) == []
        page.press("Escape")
        page.wait("!document.querySelector('dialog') && document.querySelector('.review-drawer').hidden")
        assert focused(page) == "review-list", key
    current = page.run("document.querySelector('.review-list').getAttribute('aria-activedescendant')")
    assert page.run(f"document.getElementById('{current}').getAttribute('role')") == "option"


def test_escape_leaves_what_is_typed_into_where_there_is_no_room_for_the_list(browser: Browser, address: str) -> None:
    """Half a screen wide, J went into the text, and so into its file."""
    for page in opened(browser, address, width=900):
        page.wait(f"document.querySelector('{AREA}').value !== ''")  # it has come
        for key, field in (("e", AREA), ("/", ".review-filter input")):
            page.press(key)
            before = page.run(f"document.querySelector('{field}').value")
            shown = page.run(STEP)
            page.press("Escape")
            page.press("j")
            page.wait(f"{STEP} !== {json.dumps(shown)}")
            page.press("k")
            page.wait(f"{STEP} === {json.dumps(shown)}")
            assert page.run(f"document.querySelector('{field}').value") == before
        page.click(".show-list")
        page.press("Escape")
        assert page.run("document.activeElement.tagName") == "FIGURE"


def goes_down(page: Page) -> None:
    """The server takes no text any more, until `down` is false."""
    page.run("""(() => { const real = window.fetch; window.down = true;
        window.fetch = (path, options) => window.down && String(path).includes("api/edit")
          ? Promise.reject(new TypeError("down")) : real(path, options); })()""")


NOT_SAVED = "document.querySelector('.review-saved').innerText"
MARKED = """[...document.querySelectorAll('.review-row')].filter((row) => row.innerText.includes('not saved'))
    .map((row) => row.querySelector('.name').innerText).sort().join()"""


def add(page: Page, number: int, words: str) -> None:
    """Words behind the text of the picture that is shown, once that has come."""
    page.wait(f"document.querySelector('{AREA}').value === 'a cat {number}, oil painting, 8k'")
    page.run("document.querySelector('.review-list').focus()")
    page.press("e")
    page.type(words)
    page.press("Escape")


def test_of_two_texts_that_could_not_be_saved_both_are_kept_and_sent_again(page: Page, photos: Path) -> None:
    goes_down(page)
    page.fill(".review-filter input", "name:17?.png")
    page.wait(f"{STEP}.startsWith('170.png · 1 of 10')")
    for number in (170, 171):
        add(page, number, f", mine {number}")
        page.wait(f"{NOT_SAVED}.startsWith('Not saved')")
        page.press("j")
    page.wait(f"{MARKED} === '170.png,171.png'")
    page.run("window.down = false")
    add(page, 172, ", asleep")
    page.wait(SAVED)
    page.wait(f"{MARKED} === ''")
    for number, words in ((170, ", mine 170"), (171, ", mine 171"), (172, ", asleep")):
        wait_for_text(page, photos / f"{number}.txt", f"a cat {number}, oil painting, 8k{words}\n")


def wait_for_text(page: Page, file: Path, text: str) -> None:
    until = time.monotonic() + 60
    while file.read_text() != text:
        assert time.monotonic() < until, (file.read_text(), page.errors)
        time.sleep(0.02)


def test_a_text_that_was_left_and_that_somebody_else_has_changed_waits_to_be_chosen(page: Page, photos: Path) -> None:
    """A line that went away told of it, and the text could not be seen again."""
    goes_down(page)
    page.fill(".review-filter input", "name:18?.png")
    page.wait(f"{STEP}.startsWith('180.png · 1 of 10')")
    for number in (180, 181):
        add(page, number, f", mine {number}")
        page.wait(f"{NOT_SAVED}.startsWith('Not saved')")
        page.press("j")
        (photos / f"{number}.txt").write_text(f"by hand {number}\n")
    page.run("window.down = false")
    add(page, 182, ", asleep")
    page.wait("document.querySelector('.review-saved').title.startsWith('Changed by somebody else')")
    page.wait(f"{NOT_SAVED}.startsWith('Not saved: 180.png, 181.png')")
    assert page.run(MARKED) == "180.png,181.png"
    page.fill(".review-filter input", "name:189.png")
    page.wait(f"{STEP}.startsWith('189.png')")
    page.click(".review-saved button")  # leads there, though the filter hides it
    page.wait(f"{STEP}.startsWith('180.png')")
    page.wait("document.querySelector('.review-problem').innerText.includes('by hand 180')")
    assert value(page) == "a cat 180, oil painting, 8k, mine 180"
    (photos / "180.txt").write_text("by hand once more\n")
    page.click("[aria-label='Look at the folder again']")
    page.wait("document.querySelector('.review-problem').innerText.includes('by hand once more')")
    assert value(page) == "a cat 180, oil painting, 8k, mine 180"
    page.click(".review-problem button")  # keep mine
    wait_for_text(page, photos / "180.txt", "a cat 180, oil painting, 8k, mine 180\n")
    page.wait(f"{NOT_SAVED}.startsWith('Not saved: 181.png')")
    page.press("Escape")
    page.press("j")
    page.wait("document.querySelector('.review-problem').innerText.includes('by hand 181')")
    assert value(page) == "a cat 181, oil painting, 8k, mine 181"
    page.click(".review-problem button:nth-child(2)")  # take that
    settles(page, "by hand 181")
    assert page.run(MARKED) == ""
    assert (photos / "181.txt").read_text() == "by hand 181\n"


def test_what_was_written_of_a_picture_that_has_gone_can_be_read(page: Page, photos: Path) -> None:
    goes_down(page)
    page.fill(".review-filter input", "name:19?.png")
    page.wait(f"{STEP}.startsWith('190.png · 1 of 10')")
    add(page, 190, ", mine")
    page.wait(f"{NOT_SAVED}.startsWith('Not saved')")
    page.press("j")
    have_come(page, 1, "190")
    moved = (photos / "190.png").rename(photos / "190.away")
    page.click("[aria-label='Look at the folder again']")
    page.wait(f"{STEP}.startsWith('191.png · 1 of 9')")
    page.click(".review-saved button")
    page.wait("document.querySelector('.toasts').innerText.includes('You wrote: a cat 190, oil painting, 8k, mine')")
    moved.rename(photos / "190.png")
    page.click("[aria-label='Look at the folder again']")
    page.wait(f"{STEP}.startsWith('191.png') && {STEP}.endsWith('of {MANY}')")
    page.run("window.down = false")
    add(page, 191, ", asleep")
    page.wait(SAVED)
    wait_for_text(page, photos / "190.txt", "a cat 190, oil painting, 8k, mine\n")


def test_what_could_not_be_saved_is_kept_until_it_can_be(page: Page, photos: Path) -> None:
    goes_down(page)
    page.fill(".review-filter input", "name:15?.png")
    page.wait(f"{STEP}.startsWith('150.png · 1 of 10')")
    page.run("document.activeElement.blur()")
    page.wait(f"document.querySelector('{AREA}').value === 'a cat 150, oil painting, 8k'")
    page.press("e")
    page.type(", by a lake")
    page.press("Escape")
    page.wait("document.querySelector('.review-saved').innerText.startsWith('Not saved')")
    page.press("j")
    page.wait("document.querySelector('.toast')?.innerText.startsWith('The text of 150.png is not saved yet')")
    page.wait(f"document.querySelector('{AREA}').value.startsWith('a cat 151')")
    page.press("k")
    page.wait(f"document.querySelector('{AREA}').value === 'a cat 150, oil painting, 8k, by a lake'")
    page.press("j")
    page.wait(f"document.querySelector('{AREA}').value.startsWith('a cat 151')")
    page.wait("document.querySelector('.review-saved').innerText.startsWith('Not saved')")
    page.run("window.down = false")
    page.press("e")
    page.type(", asleep")
    page.press("Escape")
    page.wait(SAVED)
    page.wait("fetch('review/api/edited').then((told) => told.json()).then(({ rows }) => rows.length >= 2)")
    assert (photos / "151.txt").read_text() == "a cat 151, oil painting, 8k, asleep\n"
    assert (photos / "150.txt").read_text() == "a cat 150, oil painting, 8k, by a lake\n"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_on_a_phone(browser: Browser, address: str, tmp_path: Path, dark: bool) -> None:
    for page in opened(browser, address, width=390, height=844, dark=dark, touch=True):
        assert page.sticks_out == 0
        page.click(".show-list")
        page.click(".review-row[aria-posinset='3']")
        page.wait(f"{STEP}.startsWith('002.png')")
        assert not page.run("document.querySelector('.review').classList.contains('listing')")
        page.click("[title^='Change many']")
        page.wait("!document.querySelector('.review-drawer').hidden")
        assert page.sticks_out == 0
        page.click(".review-drawer header button")
        ink = page.run(f"getComputedStyle(document.querySelector('{AREA}')).color")
        paper = page.run("getComputedStyle(document.body).backgroundColor")
        assert (luminance(ink) > luminance(paper)) == dark
        page.screenshot(tmp_path / "phone.png")


def luminance(colour: str) -> float:
    return sum(map(float, colour.partition("(")[2].rstrip(")").replace(",", " ").split()[:3]))


@pytest.fixture
def few(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of three, one of them with a long name."""
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("a", f"{'long-' * 40}name", "z")):
        picture(tmp_path / "photos" / f"{name}.png", number)
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    with served(tmp_path / "photos", engine) as address:
        yield address


def test_a_long_name_leaves_room_for_the_picture_and_its_place(browser: Browser, few: str) -> None:
    page = next(tabs := opened(browser, few, width=1440))
    page.press("j")
    page.wait(f"{STEP}.startsWith('long-') && document.querySelector('.review-picture img:not(.coming)')")
    right = "document.querySelector('{}').getBoundingClientRect().right"
    edge = page.run(right.format(".review-picture"))
    assert edge <= page.run("document.querySelector('.review-text').getBoundingClientRect().left")
    for shown in (".review-picture img", ".review-step .name span", ".review-step button:last-child"):
        assert page.run(right.format(shown)) <= edge
    tabs.close()


def test_how_many_texts_are_written_is_told(browser: Browser, few: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sidecars, "at_once", 1)
    monkeypatch.setattr("captioner.web.routes.review.PATIENCE", 0.0)
    may_write = threading.Semaphore(0)

    def slow(contents):
        may_write.acquire()
        write_all(contents)

    monkeypatch.setattr("captioner.review.sidecars.write_all", slow)
    page = next(tabs := opened(browser, few))
    for name in ("a.png", "z.png"):
        call(f"{few}/review/api/edit", {"name": name, "text": "a cat"})
    page.click("[aria-label='Look at the folder again']")
    for written in (0, 1):
        page.wait(f"{NOT_SAVED} === 'Saved · {written} of 2 written'")
        may_write.release()
    page.wait(SAVED)
    tabs.close()


def test_a_folder_that_was_emptied_is_told_of(browser: Browser, few: str, tmp_path: Path) -> None:
    page = next(tabs := opened(browser, few))
    have_come(page, 3)  # those that come next are asked for in advance
    for file in (tmp_path / "photos").iterdir():
        file.unlink()
    page.click("[aria-label='Look at the folder again']")
    page.wait("document.querySelector('figure').innerText === 'There are no pictures in this folder.'")
    assert not [error for error in page.errors if "404" in error]  # it is asked for no more
    assert page.run("document.querySelector('.toast')") is None
    tabs.close()


def test_what_the_server_does_not_answer_is_told(browser: Browser, few: str) -> None:
    page = next(tabs := opened(browser, few))
    page.run("window.fetch = () => Promise.reject(new TypeError('no way there'))")
    page.click("[title='Caption the folder']")
    page.wait("document.querySelector('.toast')?.innerText.includes('does not answer')")
    assert page.errors == []
    tabs.close()


def test_what_is_chosen_is_seen_without_the_pages_own_colours(browser: Browser, few: str) -> None:
    page = next(tabs := opened(browser, few))
    page.send("Emulation.setEmulatedMedia", features=[{"name": "forced-colors", "value": "active"}])
    page.run("document.querySelector('.review-list').focus()")
    page.press("x")
    page.press("b")
    ground = "getComputedStyle(document.querySelector('{}')).backgroundColor"
    for chosen, other in (
        (".review-chips [aria-pressed=true]", ".review-chips [aria-pressed=false]"),
        (".review-choice label:has(:checked)", ".review-choice label:not(:has(:checked))"),
        ("[aria-selected=true] .pick", "[aria-selected=false] .pick"),
    ):
        assert page.run(ground.format(chosen)) != page.run(ground.format(other))
    system = """(() => { const made = document.body.appendChild(document.createElement('i'));
        made.style = 'forced-color-adjust: none; background: Highlight';
        return getComputedStyle(made).backgroundColor; })()"""
    for chosen in (".review-row[aria-current]", ".review-choice label:has(:checked)", "[aria-selected=true] .pick"):
        assert page.run(ground.format(chosen)) == page.run(system)
    tabs.close()
