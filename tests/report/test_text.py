"""Summaries in plain text, numbers as they are written, the sessions' strip, and the advice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from outlast.report import formats
from outlast.report.advice import advice
from outlast.report.collect import collect, list_runs
from outlast.report.text import headline, status_line, status_table, summary
from outlast.report.timeline import strip


def test_summary_is_short_and_tells_test_from_validation(make_run: Callable[..., Path]) -> None:
    lines = summary(collect(make_run(synthetic=True))).splitlines()
    assert 15 <= len(lines) <= 30
    assert any(line.startswith("SYNTHETIC DATA") for line in lines)
    test = next(line for line in lines if line.startswith("TEST"))
    validation = next(line for line in lines if line.startswith("VALIDATION"))
    assert "balanced_accuracy 0.971" in test and "balanced_accuracy 0.967" in validation


def test_summary_stays_short_with_many_classes_and_warnings(make_run: Callable[..., Path]) -> None:
    path = make_run(classes=[f"c{place}" for place in range(50)], warnings=["look\nhere"] * 30)
    lines = summary(collect(path)).splitlines()
    assert len(lines) <= 32 and any("42 more classes" in line for line in lines)


def test_headline_is_the_test_score_by_the_metric_that_chose(make_run: Callable[..., Path]) -> None:
    path = make_run()
    first = headline(collect(path))
    assert first is not None and (first.split, first.metric) == ("TEST", "balanced_accuracy")
    (path / "scores" / "metrics.json").unlink()
    second = headline(collect(path))
    assert second is not None and second.split == "VALIDATION"


def test_status_line_names_the_next_command(make_run: Callable[..., Path]) -> None:
    line = status_line(collect(make_run(status="stopped", reason="session limit", next_command="outlast train plants")))
    assert "\n" not in line and line.endswith("next: outlast train plants") and "session limit" in line


def test_status_of_the_barest_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({}))
    run = collect(tmp_path)
    assert "unknown" in status_line(run) and "none yet" in summary(run)


def test_status_table_is_aligned_and_takes_damaged_runs(make_run: Callable[..., Path], tmp_path: Path) -> None:
    make_run("one")
    make_run("a-much-longer-name", synthetic=True)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("")
    lines = status_table(list_runs(tmp_path)).splitlines()
    assert len(lines) == 4 and len({line.index("20") for line in lines[1:] if "finished" in line}) <= 2
    assert sum("unreadable" in line for line in lines) == 1 and sum("SYNTHETIC" in line for line in lines) == 1
    assert status_table([]).count("\n") == 0


def test_advice_quotes_folders_for_the_shell(make_run: Callable[..., Path]) -> None:
    commands = [step.command for step in advice(collect(make_run("my run; rm -rf")))]
    assert all("my run" not in (command or "") or "'" in (command or "") for command in commands)


def test_strip_shows_sessions_to_scale_and_long_pauses_cut(make_run: Callable[..., Path]) -> None:
    bars = strip(collect(make_run()).sessions)
    assert [bar.pause for bar in bars] == [False, True, False, True, False]
    assert sum(bar.width for bar in bars) == pytest.approx(100)
    assert bars[0].width / bars[4].width == pytest.approx(250 / 185)
    assert all(bar.cut for bar in bars if bar.pause) and bars[1].label == "13 h 55 min"


def test_strip_works_without_any_time(make_run: Callable[..., Path]) -> None:
    bars = strip(collect(make_run(sessions=[{}, {}])).sessions)
    assert [bar.width for bar in bars if not bar.pause] == [50, 50]
    assert strip(()) == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (formats.number(0.95312), "0.953"),
        (formats.number(float("nan")), "n/a"),
        (formats.number(None), "n/a"),
        (formats.number(True), "n/a"),
        (formats.number("0.9"), "n/a"),
        (formats.number(1234567), "1,234,567"),
        (formats.number(0.00012), "1.20e-04"),
        (formats.number(0.0), "0.000"),
        (formats.percent(0.974), "97 %"),
        (formats.duration(3.21), "3.2 s"),
        (formats.duration(59.7), "1 min"),
        (formats.duration(250), "4 min 10 s"),
        (formats.duration(7500), "2 h 05 min"),
        (formats.duration(273_600), "3 d 4 h"),
        (formats.duration(None), "n/a"),
        (formats.moment(None), "n/a"),
        (formats.shorten("abcdefghij", 5), "ab…ij"),
        (formats.shorten("abc", 5), "abc"),
        (formats.title_case("macro_f1"), "Macro F1"),
        (formats.title_case("iou"), "IoU"),
    ],
)
def test_values_are_written_for_readers(written: str, meant: str) -> None:
    assert written == meant
