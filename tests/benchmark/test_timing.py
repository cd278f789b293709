from collections.abc import Iterator

import pytest

from d2_plugins.benchmark.timing import median_ratio, median_seconds


def test_median_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seconds of (candidate, baseline) in each turn; the first is a warm-up and does not count.
    turns = [(100, 1), (6, 2), (1, 1), (50, 10)]

    def clock() -> Iterator[float]:
        for pair in turns:
            for seconds in pair:
                yield 0
                yield seconds

    ticks = clock()
    calls = []
    monkeypatch.setattr("time.process_time", lambda: next(ticks))
    ratio = median_ratio(lambda: calls.append("a"), lambda: calls.append("b"), repeats=3)
    assert ratio == 3
    assert calls == ["a", "b"] * 4


def test_own_clock() -> None:
    ticks = iter([0, 1, 0, 1, 0, 6, 0, 2])
    ratio = median_ratio(lambda: None, lambda: None, repeats=1, clock=lambda: next(ticks))
    assert ratio == 3


def test_median_seconds_is_wall_clock_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 100, 0, 3, 0, 9, 0, 4])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    calls = []
    assert median_seconds(lambda: calls.append("run"), repeats=3) == 4
    assert calls == ["run"] * 4
