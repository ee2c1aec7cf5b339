"""What a model said → clean prompt text. Pure functions; the whole is `clean`.

Each piece takes a text and gives one that is never longer. `clean` applies them until nothing changes, so cleaning
twice is cleaning once, and what has a letter or a digit outside special tokens never becomes empty.

Most texts need little of it: a piece looks first, by what is fast, whether there is anything for it. A pattern that
begins with the character it looks for is fast; one that begins with what must stand before is tried everywhere.
"""

from __future__ import annotations

import re
from collections import Counter


def clean(text: str, *, finished: bool = True) -> str:
    """The finished text. `finished=False`: the length limit cut it short, so its end dangles and is dropped too."""
    text = _settle(text)
    return text if finished else _settle(drop_dangling(text))


def _settle(text: str) -> str:
    """One piece can make work for another (a dropped token brings two equal words together): until nothing changes."""
    while (changed := _once(text)) != text:
        text = changed
    return text


def _once(text: str) -> str:
    for piece in _PIECES:
        text = piece(text)
    return text


# --- special tokens --------------------------------------------------------------------------------------------------

# Bracketed names only in the upper case that tokenizers write: "[mask]" may be a prompt's own word. Names that are not
# listed stay: <lora:…> and <my-embedding> mean something to the programs that draw.
_SPECIAL = re.compile(
    r"<\s?/?\s?(?:unk|eos|bos|sos|eot|sot|pad|mask|sep|cls|start|end|s|w|code_\d+|bin_\d+|loc_\d+|extra_id_\d+)\s?>"
    r"|<0x[0-9a-f]{2}>|<\|[\w -]{1,40}\|>",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"\[\s?(?:UNK|EOS|BOS|PAD|MASK|SEP|CLS|DEC|ENC|unused\d+)\s?\]")
_CONTINUED = re.compile(r" (?<=\w )##(?=\w)")


def drop_special_tokens(text: str) -> str:
    """<UNK>, </s>, [SEP], <|endoftext|>, <code_12> … and the marks tokenizers put for spaces (Ġ ▁ ##)."""
    text = _BRACKETED.sub(" ", _SPECIAL.sub(" ", text))
    text = _CONTINUED.sub("", text).replace("▁", " ")
    if text.isascii():
        return text
    # Maltese words begin with Ġ; one inside a word is GPT-2's mark for a space.
    return re.sub(r"[ĠĊ]", " ", text) if re.search(r"\S[ĠĊ]", text) else text


# --- text that was encoded twice -------------------------------------------------------------------------------------

_CP1252 = {chr(byte): byte for byte in range(0x80, 0x100)} | {
    bytes([byte]).decode("cp1252"): byte
    for byte in range(0x80, 0xA0)
    if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)  # unused in Windows-1252
}
_NEXT = "[" + re.escape("".join(c for c, byte in _CP1252.items() if byte < 0xC0)) + "]"
_TWICE = re.compile(
    f"[ÂÃ]{_NEXT}"
    f"|(?:[ÄÅÎÏÐÑ]{_NEXT}){{2,}}"  # once alone it may be meant: "Å°"
    f"|[à-ï]{_NEXT}{{2}}|[ðñòóô]{_NEXT}{{3}}"
)
_AFTER_WORDS = frozenset("‘’“”…–—™›»‹«„‚•\xa0")
"""What may follow a word that ends in an accented letter: “voilà…” is no accident."""


def undo_mojibake(text: str) -> str:
    """UTF-8 that was read as Windows-1252 or Latin-1: "CafÃ©" → "Café", "donâ€™t" → "don’t"."""
    return text if text.isascii() else _TWICE.sub(_decode_again, text)


def _decode_again(match: re.Match[str]) -> str:
    twice = match[0]
    followed_by_letter = match.string[match.end() : match.end() + 1].isalpha()
    if set(twice[1:]) <= _AFTER_WORDS and not followed_by_letter:
        return twice
    try:
        once = bytes(_CP1252[c] for c in twice).decode("utf-8")
    except UnicodeDecodeError:
        return twice
    return once if once.isprintable() or once.isspace() else twice


# --- what models add -------------------------------------------------------------------------------------------------

# BLIP's made-up word (arafed, araffe, araffes, arafy …), with the article that it leaves behind.
_ARAFED = re.compile(r"\b(?:(an?) )?araff?(?:e|ed|es|y|ly|ing)\b (?=(\w))", re.IGNORECASE)
_PICTURE_OF = re.compile(r"^(?:(?:there|this|it) is )?(?:a|an) (?:picture|image) of (?=\w)", re.IGNORECASE)


def drop_artefacts(text: str) -> str:
    """BLIP's "arafed" and a leading "a picture of". "A photo of" stays: it says something about the picture."""
    if "araf" in text.lower():
        text = _ARAFED.sub(_article, text)
    return _PICTURE_OF.sub("", text)


def _article(match: re.Match[str]) -> str:
    if match[1] is None:
        return ""
    return "an " if match[2] in "aeiouAEIOU" else "a "


# --- how chat models begin -------------------------------------------------------------------------------------------

_BULLET = re.compile(r"[-*•]\s+|\d{1,2}[.)]\s+")


def join_lists(text: str) -> str:
    """A list with a bullet or a number on each line → comma terms. What stands above it ends in a colon."""
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    above = lines[:1] if lines and lines[0].endswith(":") else []
    items = [_BULLET.sub("", line, count=1) for line in lines[len(above) :] if _BULLET.match(line)]
    if len(items) < 2 or len(items) + len(above) < len(lines):
        return text
    return " ".join([*above, ", ".join(item.rstrip(",;") for item in items)])


_LANGUAGE = re.compile(r"```\w+\n(?=[^`]*\w)")
_FENCED = re.compile(r"\s*(`{1,3})([^`]*\w[^`]*)\1\s*")


def drop_fences(text: str) -> str:
    """Backticks around it all, as around code: ```text … ```"""
    if "`" not in text:
        return text
    match = _FENCED.fullmatch(text := _LANGUAGE.sub("```\n", text))
    return match[2].strip() if match else text


_THOUGHT = re.compile(r"^.*</think>(?=.*\w)", re.DOTALL)
_HERE_IT_IS = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely)(?: thing)?[!,.:]? )?here(?:'s|’s| is| are) "
    r"[^:]{0,60}\b(?:prompt|caption|description|tags|list|text|sentence|paragraph|answer)\b[^:]{0,60}: (?=.*\w)"
    r"|^(?:sure|certainly|of course|absolutely)(?: thing)?[!.:] (?=.*\w)"
    r"|^(?:(?:text-to-image |image |stable diffusion )?prompt|caption|description|tags|answer): (?=.*\w)",
    re.IGNORECASE,
)
_SHOWS = r"shows|depicts|features|displays|portrays|presents|captures|contains|illustrates|showcases|is of"
_KINDS = "photo|photograph|painting|illustration|drawing|image|picture|render|rendering|artwork|portrait|sketch|scene"
_THIS_IMAGE = re.compile(
    rf"^(?:this|the) (?:image|picture)(?: (?:{_SHOWS})(?:: | )| is (?=an? ))(?=.*\w)"
    r"|^in (?:this|the) (?:image|picture)(?:,? (?:(?:we|you|i) (?:can )?see|there (?:is|are))|,) (?=.*\w)"
    rf"|^this is (?=an? (?:[\w-]+ ){{0,4}}(?:{_KINDS})\b)",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"^(?:\"([^\"]*\w[^\"]*)\"|“([^“”]*\w[^“”]*)”)$")


def drop_openings(text: str) -> str:
    """ "Sure! Here is a prompt: …", "This image shows …", what was thought before, bold type, quotes around it all."""
    text = _THOUGHT.sub("", text).replace("**", "").strip()
    text = _THIS_IMAGE.sub("", _HERE_IT_IS.sub("", text))
    return _QUOTED.sub(lambda match: match[1] or match[2], text)


# --- repetition ------------------------------------------------------------------------------------------------------

_LONGEST_PHRASE = 24
_LOOP = re.compile(r"(?=[^\W\d_]{12})([^\W\d_]{1,8}?)\1{11,}")
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=\S)")


def drop_repeated_phrases(text: str) -> str:
    """ "a cat on a mat on a mat" → "a cat on a mat". A single word must come three times: "duran duran" is a name."""
    words = text.split(" ")
    keys = text.lower().rstrip(".").split(" ")
    again = {key for key, count in Counter(keys).items() if count > 1}
    at = 0
    while again and at < len(words):
        for length in range(1, _LONGEST_PHRASE + 1 if keys[at] in again else 1):
            end = at + length
            if end >= len(keys):
                break
            if keys[end] != keys[at]:  # nothing begins anew here
                continue
            phrase = keys[at:end]
            if not any(map(str.isalpha, "".join(phrase))):
                continue
            while keys[end : end + length] == phrase:
                end += length
            if end - at >= 3:  # words; two make a name
                del words[at + length : end], keys[at + length : end]
        at += 1
    return " ".join(words)


def drop_loops(text: str) -> str:
    """What goes on for ever inside one word: "hahaha…" a dozen times."""
    if max(map(len, text.split()), default=0) < 12:
        return text
    return _LOOP.sub(r"\1", text)


def drop_repeated_sentences(text: str) -> str:
    """A sentence of three words or more that was there before."""
    seen: set[str] = set()
    sentences = []
    for sentence in _SENTENCE_END.split(text):
        key = sentence.lower()
        if key.count(" ") >= 2 and key in seen:
            continue
        seen.add(key)
        sentences.append(sentence)
    return " ".join(sentences)


def drop_repeated_terms(text: str) -> str:
    """ "wearing a red hat, outdoors, wearing a red hat" → "wearing a red hat, outdoors"."""
    seen: set[str] = set()
    terms = []
    for term in text.split(","):
        key = term.strip().rstrip(".").lower()
        # A term with a bracket or a weight belongs to its neighbours, and numbers may be a list.
        plain = key and not re.search(r"[()\[\]{}<>:|\"]", key) and any(c.isalpha() for c in key)
        if plain and key in seen:
            continue
        seen.add(key)
        terms.append(term)
    return ",".join(terms)


# --- spelling --------------------------------------------------------------------------------------------------------

_NUMBER_ENDS = re.compile(r"\d ")
_DIGITS = re.compile(r"(?<![\w.])\d(?: \d)+(?!\w)")
_UNITS = re.compile(
    r"\b(?:(?:[2-6]|8|1[026]|32) (?=k\b)|[2-5] (?=d\b)|(?:[1-9]|1[0-9]\d|20\d)0 (?=s\b)|\d{3,4} (?=p\b)"
    r"|\d*1 (?=st\b)|\d*2 (?=nd\b)|\d*3 (?=rd\b)|\d+ (?=th\b))",
    re.IGNORECASE,
)


def mend_numbers(text: str) -> str:
    """Tokenizers that split digits leave "8 k", "3 d", "1 9 6 0 s", "2 1 st": joined again."""
    if not _NUMBER_ENDS.search(text):
        return text
    text = _DIGITS.sub(lambda run: run[0].replace(" ", ""), text)
    return _UNITS.sub(lambda number: number[0].rstrip(" "), text)


# Kept: the zero-width joiner, which holds emoji together.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\xad\u200b\u2028\u2029\u2060\ufeff\ufffd\ud800-\udfff\\s]+")
_TIDY = (
    (re.compile(r" ([,;!?.]+)(?= |$)"), r"\1"),  # "a cat , a dog ."
    (re.compile(r" (?<=[^\W\d] ):(?= [^:]|$)"), ":"),
    (re.compile(r"([(\[{]) "), r"\1"),
    (re.compile(r" ([)\]}])"), r"\1"),
    (re.compile(r" (?<=\w )' ?(?=(?:s|t|re|ve|ll|d|m)\b(?! ?'))"), "'"),  # "dali ' s"
    (re.compile(r"([,;!?])(?: ?\1)+"), r"\1"),
    (re.compile(r"\.{4,}"), "..."),
    (re.compile(r"(?<!\.)\.\.(?!\.)|,\.(?!\d)"), "."),
    (re.compile(r"^(?:[,;:!?.]+ |[,; ])+"), ""),
)


_SIGNS = re.compile(
    r"(?:^|(?<=,)|(?<=, ))"
    r"(?!(?:[.;:]{1,2}|\.{4,}) ?(?:,|$))"  # stray, or a longer "..."
    r"(?=[^\s,]{1,8} ?(?:,|$))"  # what is longer is a loop
    r"(?:[^\w\s,]+\w?[^\w\s,]*|\w[^\w\s,]+)"
    r"(?= ?(?:,|$))"
)
"""A comma term of signs, with one letter at most: booru tags are called ;) and d: and !? and ..."""
_MAYBE_SIGNS = re.compile(r", ?(?:[^\w\s,]|\w[^\w\s,])")
"""How one begins, which most texts lack: this is looked for in a sixth of the time."""


def tidy(text: str) -> str:
    """One space between words, none before punctuation or inside brackets, no runs of punctuation, no loose ends.

    A comma term of signs is left as it is.
    """
    if "  " in text or "\ufffd" in text or not text.isprintable():  # of spaces only the usual one is printable
        text = _INVISIBLE.sub(" ", text)
    signs = _SIGNS.findall(text) if "," in text and _MAYBE_SIGNS.search(f",{text}") else []
    if signs:
        text = _SIGNS.sub("\0", text)  # which no text holds any more
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    text = text.rstrip(",;: ")
    return re.sub("\0", lambda _: signs.pop(0), text) if signs else text


_PIECES = (
    drop_special_tokens,
    undo_mojibake,
    drop_fences,
    join_lists,
    tidy,
    drop_openings,
    drop_artefacts,
    drop_loops,
    drop_repeated_phrases,
    drop_repeated_sentences,
    drop_repeated_terms,
    mend_numbers,
)


# --- length ----------------------------------------------------------------------------------------------------------

_CONNECTING = re.compile(
    r"( (in front|next|a|an|the|this|that|of|in|on|at|by|with|without|and|or|but|to|for|from|into|onto|over|under|near"
    r"|as|is|are|was|were|be|being|his|her|its|their|which|who|while|wearing|holding|very))+$",
    re.IGNORECASE,
)


def drop_dangling(text: str) -> str:
    """Of a text that the length limit cut: all after the last comma or sentence, or at least a loose "… in front of a".

    What follows the last comma stays when it is most of the text.
    """
    if text.endswith((".", "!", "?")):
        return text
    ends = [match.start() for match in re.finditer(r",|(?<=[.!?]) ", text)]
    if ends and 2 * ends[-1] >= len(text) and any(c.isalnum() for c in text[: ends[-1]]):
        return text[: ends[-1]]
    last_two = max(0, text.rfind(" ", 0, max(0, text.rfind(" "))))  # words; "in front" is two
    short = _CONNECTING.sub("", text) if _CONNECTING.search(text, last_two) else text
    return short if any(map(str.isalnum, short)) else text
