"""`collect` reads whatever is there, and says what it could not read."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from outlast.errors import RunError
from outlast.report.collect import collect, list_runs
from outlast.report.text import summary


def test_whole_run_is_read(make_run: Callable[..., Path]) -> None:
    run = collect(make_run())
    assert (run.task, run.status, run.synthetic) == ("plants", "finished", False)
    assert [session.why_stopped for session in run.sessions] == ["session limit", "SIGTERM", "finished"]
    assert run.test is not None and run.test.images == 138
    assert run.test.per_class["healthy"]["images"] == 46
    assert run.trained[0].score == "balanced_accuracy" and run.trained[0].rises
    assert run.trained[0].best["step"] == run.trained[0].result["best_step"]
    assert sum(images for images, _ in run.split_totals.values()) == 460
    assert run.divided_groups == ()
    assert len(run.mistakes) == 4 and run.mistakes[0].thumbnail is not None
    assert run.problems == ()


def test_groups_are_counted_once_per_split(make_run: Callable[..., Path]) -> None:
    path = make_run()
    (path / "split.csv").write_text(
        "id,label,group,split,hash\na,x,g,train,0\nb,x,g,train,0\nc,y,g,train,0\nd,y,h,val,0\n"
    )
    run = collect(path)
    assert run.split["x"] == {"train": (2, 1), "val": (0, 0)}
    assert run.split_totals == {"train": (3, 1), "val": (1, 1)}
    assert run.divided_groups == ()


def test_groups_in_two_splits_are_told(make_run: Callable[..., Path]) -> None:
    path = make_run()
    (path / "split.csv").write_text("id,label,group,split,hash\na,x,g,train,0\nb,x,g,val,0\nc,x,h,val,0\n")
    run = collect(path)
    assert run.divided_groups == ("g",)
    assert "GROUPS IN MORE THAN ONE SPLIT: 1" in summary(run)


def test_class_numbers_in_the_split_become_names(make_run: Callable[..., Path]) -> None:
    path = make_run()
    (path / "split.csv").write_text("id,label,group,split,hash\na,2,g,train,0\nb,0,h,val,0\n")
    assert list(collect(path).split) == ["early blight", "late blight"]
    (path / "split.csv").write_text("id,label,group,split,hash\na,7,g,train,0\nb,0,h,val,0\n")
    assert list(collect(path).split) == ["0", "7"]


def test_no_run_is_an_error_with_a_hint(tmp_path: Path) -> None:
    for place in (tmp_path / "absent", tmp_path):
        with pytest.raises(RunError) as caught:
            collect(place)
        assert caught.value.hint
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        collect(tmp_path)


def test_only_run_json_is_enough(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    run = collect(tmp_path)
    assert run.status == "unknown" and run.sessions == () and run.stages == () and run.test is None


def test_torn_last_line_is_left_out_and_named(make_run: Callable[..., Path]) -> None:
    path = make_run() / "train" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 410, "train_lo')
    run = collect(path.parent.parent)
    assert run.trained[0].rows[-1]["step"] == 400
    assert any("metrics.jsonl, line 41" in problem for problem in run.problems)


def test_a_step_done_twice_counts_as_it_was_done_last(make_run: Callable[..., Path]) -> None:
    path = make_run() / "train" / "metrics.jsonl"
    path.write_text('{"step": 1, "train_loss": 9}\n{"step": 2, "train_loss": 8}\n{"step": 1, "train_loss": 7}\n')
    assert [row["train_loss"] for row in collect(path.parent.parent).trained[0].rows] == [7, 8]


def test_unfinished_stage_knows_its_best_so_far(make_run: Callable[..., Path]) -> None:
    path = make_run(score={"train": "-loss"})
    (path / "train" / "stage.json").unlink()
    stage = collect(path).trained[0]
    losses = {row["step"]: row["val_loss"] for row in stage.rows}
    assert not stage.done and stage.score == "loss" and not stage.rises
    assert stage.best["value"] == min(losses.values()) and losses[stage.best["step"]] == stage.best["value"]


def test_values_of_wrong_types_count_as_missing(make_run: Callable[..., Path]) -> None:
    strange = {"data": 3, "rung": [], "sessions": [7, {"started": "yesterday", "from_step": "x"}], "versions": None}
    run = collect(make_run(**strange))
    assert run.data == {} and run.rung == {}
    assert len(run.sessions) == 1 and run.sessions[0].started is None and run.sessions[0].from_step is None


def test_damaged_parts_are_named_and_the_rest_is_read(make_run: Callable[..., Path]) -> None:
    path = make_run()
    (path / "scores" / "metrics.json").write_text("{")
    (path / "scores" / "mistakes.json").write_bytes(b"\xff\xfe")
    run = collect(path)
    assert run.test is None and run.mistakes == () and run.trained
    assert len(run.problems) == 2


def test_metrics_by_class_are_understood_in_every_shape(make_run: Callable[..., Path]) -> None:
    path = make_run()
    for metrics in (
        {"mcc": 0.5, "per_class": {"ice": {"iou": 0.7}, "rock": {"iou": math.nan}}},
        {"mcc": 0.5, "iou": {"ice": 0.7, "rock": math.nan}},
        {"mcc": 0.5, "ice": {"iou": 0.7}, "rock": {"iou": math.nan}},
    ):
        found = {"split": "test", "images": 3, "metrics": metrics, "classes": ["ice", "rock"]}
        (path / "scores" / "metrics.json").write_text(json.dumps(found))
        scores = collect(path).test
        assert scores is not None and scores.metrics == {"mcc": 0.5} and scores.confusion == ()
        assert scores.per_class["ice"] == {"iou": 0.7} and math.isnan(scores.per_class["rock"]["iou"])


def test_thumbnails_outside_the_run_are_not_followed(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = make_run()
    (tmp_path / "secret.png").write_bytes(b"\x89PNG")
    os.symlink(tmp_path / "secret.png", path / "scores" / "link.png")
    named = ["../secret.png", str(tmp_path / "secret.png"), "scores/link.png", "scores/absent.png", "a\x00b", 7, None]
    (path / "scores" / "mistakes.json").write_text(json.dumps({"mistakes": [{"thumbnail": name} for name in named]}))
    assert [mistake.thumbnail for mistake in collect(path).mistakes] == [None] * len(named)


def test_list_runs_shows_damaged_ones_too(make_run: Callable[..., Path], tmp_path: Path) -> None:
    make_run("good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    (tmp_path / "other").mkdir()
    assert {run.name: run.status for run in list_runs(tmp_path)} == {"good": "finished", "bad": "unreadable"}
    assert [run.name for run in list_runs(tmp_path / "good")] == ["good"]
    assert list_runs(tmp_path / "absent") == []


def test_report_imports_no_torch() -> None:
    code = (
        "import sys, outlast.report.page, outlast.report.plots, outlast.report.text; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_status_needs_no_matplotlib() -> None:
    code = "import sys, outlast.report.collect, outlast.report.text; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
