"""Latency: contenders take turns, are warmed up first, and leave the number of threads as it was."""

import time

import pytest
import torch

from outlast.model import latency


def test_contenders_take_turns_after_a_warm_up_and_the_slow_one_is_told_from_the_fast(monkeypatch):
    monkeypatch.setattr(latency, "FEWEST", 3)
    monkeypatch.setattr(latency, "MOST", 4)
    called = []

    def contender(name, seconds):
        def opened():
            called.append((f"open {name}", torch.get_num_threads()))
            return lambda: (called.append(name), time.sleep(seconds))

        return opened

    before = torch.get_num_threads()
    found = latency.latencies({"slow": contender("slow", 0.02), "fast": contender("fast", 0.001)}, 1)
    assert called[:2] == [("open slow", 1), ("open fast", 1)]
    warm = 2 + 2 * latency.WARM_UP
    assert called[warm:] == ["slow", "fast"] * 4
    assert torch.get_num_threads() == before
    assert [found[name]["calls"] for name in found] == [4, 4]
    for name, seconds in (("slow", 0.02), ("fast", 0.001)):
        one = found[name]
        assert seconds <= one["quartile_1_seconds"] <= one["median_seconds"] <= one["quartile_3_seconds"]
    assert found["slow"]["median_seconds"] > 3 * found["fast"]["median_seconds"]


def test_when_the_time_is_over_only_the_fewest_rounds_are_done(monkeypatch):
    monkeypatch.setattr(latency, "FEWEST", 3)
    assert latency.latencies({"one": lambda: lambda: None}, 1, seconds=0)["one"]["calls"] == 3


def test_the_number_of_threads_is_put_back_after_a_failure():
    before = torch.get_num_threads()

    def broken():
        raise RuntimeError("no such model")

    with pytest.raises(RuntimeError):
        latency.latencies({"broken": lambda: broken}, before + 1)
    assert torch.get_num_threads() == before
