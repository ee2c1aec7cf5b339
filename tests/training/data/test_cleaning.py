"""Training text holds what a picture shows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.cleaning import clean, is_english, terms


@pytest.mark.parametrize(
    ("typed", "learnt"),
    [
        ("a robot, 8 k, 4k uhd, ultra hd, high resolution, full-hd, 1920x1080, 1080p, 300 dpi", "a robot"),
        ("a robot, 2022, painted in 1984, 1 9 5 0 s diner, 1960s", "a robot, painted, 1950s diner, 1960s"),
        ("blade runner 2049, at 10:30, 16:9", "blade runner 2049, at 10:30, 16:9"),
        ("((masterpiece)), (a cat:1.3), [dull], {red}", "masterpiece, a cat, dull, red"),
        ("a hat \\(blue\\), [cat:dog:0.5]", "a hat blue, cat, dog"),
        ("sitting cat::2 tree::-1", "sitting cat, tree"),
        ("a fox --ar 16:9 --v 5 --style raw", "a fox"),
        ("a fox --no hands, text --chaos 20", "a fox"),
        ("a fox, oil painting -s 50 -W 512 -C7.5", "a fox, oil painting"),
        ("self - portrait -- dark, black-and-white", "self - portrait -- dark, black-and-white"),
        ("<lora:style:0.8> a house, see https://a.example/b?c=1 or www.a.example", "a house, see or"),
        ("🌉 a bridge ⚡️ at dusk 👩‍🎨", "a bridge at dusk"),
        ("a castle | oil paint BREAK fog; rain", "a castle, oil paint, fog, rain"),
        ("a cat , a dog ,, , very, in", "a cat, a dog"),
        ("CafÃ© at night", "Café at night"),
        ("8k, 4k, 2022", ""),
    ],
)
def test_noise_goes_and_content_stays(typed: str, learnt: str) -> None:
    assert clean(typed) == learnt


def test_where_it_was_liked_is_dropped_on_demand() -> None:
    prompt = "a tower, trending on artstation, by greg rutkowski, featured on deviantart and behance, cgsociety"
    assert clean(prompt) == prompt
    assert clean(prompt, drop_trending=True) == "a tower, by greg rutkowski"


PIECES = ["a cat", "8 k", "(", ")", ":1.3", "[", "|", "::2", " --ar 16:9", ", ", " ", "<lora:x>", "4k", "in 2022", "🌉"]


@settings(deadline=None, max_examples=50)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
def test_cleaning_twice_is_cleaning_once(typed: str) -> None:
    for drop_trending in (False, True):
        once = clean(typed, drop_trending=drop_trending)
        assert clean(once, drop_trending=drop_trending) == once


@pytest.mark.parametrize(
    "prompt",
    [
        "a red car on the street",
        "portrait, oil painting, greg rutkowski, alphonse mucha",
        "guillermo del toro and leonardo da vinci in los angeles, vincent van gogh",
        "café in München, crème brûlée",
        "",
    ],
)
def test_english(prompt: str) -> None:
    assert is_english(prompt)


@pytest.mark.parametrize(
    "prompt",
    [
        "eine rote katze auf einem dach mit hut",
        "une rue de paris vide avec des voitures, un restaurant",
        "un perro con una pelota en la playa por la noche",
        "um lobo correndo em uma floresta com pinheiros",
        "красная кошка на крыше",
        "屋根の上の赤い猫",
    ],
)
def test_not_english(prompt: str) -> None:
    assert not is_english(prompt)


def test_terms() -> None:
    assert terms("a cat, , very, - oil paint -,!") == ["a cat", "oil paint"]


def test_a_long_run_is_looked_through_once() -> None:
    run = "a-" * 60_000  # took minutes when a link was sought from every letter of it
    assert clean(f"{run}, a cat") == f"{run[:-1]}, a cat"
    assert clean("see my--page.com/x or --a-b.org, a cat") == "see or, a cat"
