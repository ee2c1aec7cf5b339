"""What messages are made of."""

from captioner.errors import counted


def test_counted() -> None:
    assert [counted(number, "pair") for number in (0, 1, 2, 1234)] == ["0 pairs", "1 pair", "2 pairs", "1,234 pairs"]
    assert (counted(1, "batch"), counted(2, "batch"), counted(3, "process")) == ("1 batch", "2 batches", "3 processes")
