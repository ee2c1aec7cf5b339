"""Prometheus' text format."""

from captioner.serving.metrics import Counter, Histogram, gauge


def test_a_counter_has_a_line_for_each_set_of_labels() -> None:
    counter = Counter("requests_total", "Requests.", ("route", "status"))
    counter.add("/a", "200")
    counter.add("/a", "200")
    counter.add('/"b"\n', "404")
    assert list(counter.lines()) == [
        "# HELP requests_total Requests.",
        "# TYPE requests_total counter",
        'requests_total{route="/\\"b\\"\\n",status="404"} 1',
        'requests_total{route="/a",status="200"} 2',
    ]


def test_buckets_are_cumulative() -> None:
    histogram = Histogram("size", "Sizes.", (1, 2))
    for number in (1, 1, 2, 5):
        histogram.see(number)
    assert list(histogram.lines())[2:] == [
        'size_bucket{le="1"} 2',
        'size_bucket{le="2"} 3',
        'size_bucket{le="+Inf"} 4',
        "size_sum 9.000000",
        "size_count 4",
    ]


def test_a_gauge_is_a_number() -> None:
    assert list(gauge("queue", "Waiting.", 3)) == ["# HELP queue Waiting.", "# TYPE queue gauge", "queue 3"]


def test_large_numbers_are_told_to_the_last_digit() -> None:
    counter = Counter("requests_total", "Requests.")
    counter._counts[()] = 1_234_567
    counter.add()
    assert list(counter.lines())[-1] == "requests_total 1234568"
    assert list(gauge("bytes", "Bytes.", 255_999_997))[-1] == "bytes 255999997"
