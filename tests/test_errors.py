"""What messages are made of."""

from captioner.errors import BadInput, counted, one_line


def test_counted() -> None:
    assert [counted(number, "pair") for number in (0, 1, 2, 1234)] == ["0 pairs", "1 pair", "2 pairs", "1,234 pairs"]
    assert (counted(1, "batch"), counted(2, "batch"), counted(3, "process")) == ("1 batch", "2 batches", "3 processes")


def test_a_library_s_words_are_cut_off_and_a_sentence_of_ours_is_not() -> None:
    assert one_line(ValueError("bad\n  value\x1b")) == r"bad value\x1b"
    assert one_line(ValueError("x" * 300)) == "x" * 200
    assert one_line(BadInput("x" * 300)) == "x" * 300
    assert one_line(ValueError()) == "ValueError"
