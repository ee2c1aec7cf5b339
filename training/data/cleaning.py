"""Prompts as people type them → text that a picture can teach. Pure functions; the whole is `clean`.

Dropped is what no picture shows: words of resolution, years, links, switches of programs (`--ar 16:9`, `<lora:…>`),
weights, emoji. What a model's output needs as well (numbers, spaces, repetition) is `captioner.text.clean`'s work.
"""

from __future__ import annotations

import re
import unicodedata

from captioner.text.clean import clean as clean_text

LINK = re.compile(
    # A name begins where nothing of a name stands before it: a run of "a-" is looked through once, not from every "a".
    r"(?:https?://|www\.)\S+|(?<![\w-])-*\w[\w-]*\.(?:com|org|net|jpe?g|png|webp)\b(?:/\S*)?",
    re.IGNORECASE,
)
NETWORK = re.compile(r"<[^<>]{1,100}>")
"""<lora:name:0.8>, <hypernet:…>, and names of learnt words: they stand for pictures, but only in one program."""

SWITCH = re.compile(
    r"(?:(?<=\s)|^)(?:--|—|–)(?:"
    r"no\s.*?(?=\s(?:--|—|–)[a-z]|$)"  # what the picture should not show, to the next switch
    r"|(?:style|seed|sref|cref|profile|p|sampler)\s+[^\s,]+"
    r"|[a-z]+(?:\s+-?\d[\d.:/x]*)?)"
    r"|(?<!\S)-[a-z]{1,2}\s?\d[\d.]*(?!\S)",  # -s 50 -W 512 -C 7.5
    re.IGNORECASE,
)
PART_WEIGHT = re.compile(r"\s*:\s?:\s*-?(?:\d+(?:\.\d+)?)?")
"""`cat::2 dog::-1`"""
WEIGHT = re.compile(r"(?<=[^\W\d])\s?:\s?-?\d+(?:\.\d+)?(?=\s*[,)\]}|]|\s|$)")
"""`(cat:1.3)`, `cat:1.3`; a number before the colon is a time or a ratio, and stays."""
SCHEDULE = re.compile(r"\[([^\[\]:|]*):([^\[\]:|]*):\s*\d*\.?\d+\s*\]")
"""`[cat:dog:0.5]`: a cat at first, later a dog."""
BRACKETS = re.compile(r"\\?[()\[\]{}]|[<>*_`~^=+#@|\\]+")
SEPARATOR = re.compile(r"\s*(?:\||\bBREAK\b|;)\s*")

RESOLUTION = re.compile(
    r"\b(?:in |at )?(?:"
    r"(?:true |ultra )?(?:\d{1,3} ?k)(?: (?:u?hd|resolution|quality|res|render|textures?|wallpaper))*"
    r"|(?:(?:ultra|full|super|quad)[ -]?)?(?:u|f|q)?hd(?: (?:resolution|quality))?"
    r"|(?:ultra |very |super |extremely )?(?:high|hi|full|max(?:imum)?)[ -]?(?:res(?:olution)?|definition|def)"
    r"|(?:absurd|incredibly |insane)[ -]?res(?:olution)?"
    r"|\d{3,4}p|\d{3,5} ?[x×] ?\d{3,5}(?: ?(?:px|pixels))?|\d+ ?(?:dpi|ppi|megapixels?|mpx?)"
    r"|(?:\d+[ -]?bit )?resolution"
    r")\b",
    re.IGNORECASE,
)
YEAR = re.compile(
    r"(?:\b(?:in|from|of|circa|since|ca?\.?) )?"
    r"\b(?:19\d\d|20[0-2]\d)\b(?!'?s|[-.:/x×]\d| ?(?:mm|px|ad|bc)\b)"
)
"""Years as dates of uploads. Decades ("1960s") are a look, and years to come ("Blade Runner 2049") are names."""

SITES = (
    r"(?:art ?station|deviant ?art|cg ?society|pixiv(?: fanbox)?|behance|dribbble|instagram|reddit|flickr|pinterest"
    r"|500 ?px|tumblr|unsplash)"
)
TRENDING = re.compile(
    rf"\b(?:(?:currently |now )?(?:trending|featured|popular|famous|posted|as seen|top rated|#?1) (?:on|in|at) )?"
    rf"{SITES}(?: ?hq\b| ?hd\b)?(?:(?: and | & |/){SITES})*(?: (?:trending|contest winner|winner))?\b",
    re.IGNORECASE,
)
"""Where pictures were liked, not how they look. Models react to these words all the same: dropped only on demand."""

EMOJI = re.compile(
    "[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\u2190-\u21ff\u2300-\u23ff\ufe0e\ufe0f\u200d\u20e3\U000e0020-\U000e007f]+"
)


def clean(text: str, *, drop_trending: bool = False) -> str:
    """One line of visible content; empty if nothing is left. Cleaning twice is cleaning once."""
    before, text = None, clean_text(unicodedata.normalize("NFKC", text))
    while text != before:  # one piece can make work for another
        before, dropped = text, _drop(text, drop_trending)
        text = text if dropped == text else clean_text(dropped)
    return text


def _drop(text: str, drop_trending: bool) -> str:
    for noise in (EMOJI, LINK, NETWORK, SWITCH):
        text = noise.sub(" ", text)
    text = SCHEDULE.sub(r"\1, \2", text)
    text = WEIGHT.sub("", PART_WEIGHT.sub(", ", text))
    text = BRACKETS.sub(" ", SEPARATOR.sub(", ", text))
    text = YEAR.sub(" ", RESOLUTION.sub(" ", text))
    if drop_trending:
        text = TRENDING.sub(" ", text)
    return ", ".join(terms(text))


def terms(text: str) -> list[str]:
    """What stands between the commas, without terms that say nothing."""
    stripped = (" ".join(term.split()).strip(" .:;-/&\"'") for term in text.split(","))
    return [term for term in stripped if any(c.isalnum() for c in term) and term.lower() not in LEFT_OVER]


_LEFT_OVER = "a an the and or of in on at by with from very ultra quality hq"
LEFT_OVER = frozenset(_LEFT_OVER.split())
"""Terms that say nothing once their neighbours are gone."""

_ENGLISH = """
the of and with in on at by a an is are from to his her its their as for into over under
wearing standing holding sitting looking very style
"""
# German, French, Spanish, Portuguese, Italian, Dutch, Turkish, Nordic, Malay; not the particles of names (de, la, van),
# nor what is an English word or a name as well (no, den, met).
_FOREIGN = """
und mit ein eine einem einen einer auf für ist nicht dem zwischen
avec dans une sur et qui est des aux sous
con una por para los las sobre entre hombre mujer
com uma em um não na dos das
nel nella che sulla della sono uno
het een voor naar zijn
bir için ile
się jest przez
och på som
yang dengan
"""
ENGLISH = frozenset(_ENGLISH.split())
FOREIGN = frozenset(_FOREIGN.split())


def is_english(text: str) -> bool:
    """A light judgement, made for prompts: lists of names and styles have few function words in any language.

    Not English is what has many letters outside the Latin script, or at least two different function words of other
    European languages and more of them than English ones. Names ("Guillermo del Toro") do not count.
    """
    letters = [c for c in text if c.isalpha()]
    if sum(c < "\u0250" for c in letters) < 0.7 * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", text.lower())
    foreign = {word for word in words if word in FOREIGN}
    return len(foreign) < 2 or sum(word in FOREIGN for word in words) <= sum(word in ENGLISH for word in words)
