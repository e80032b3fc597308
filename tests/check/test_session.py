"""The checks of the session: its end, what is kept of it, and what it must fetch."""

from dataclasses import replace
from pathlib import Path

import pytest

from outlast.check import session
from outlast.check.finding import CannotCheck, checks_of
from toys.machines import NOON, found, healthy, subject

HOUR = 3600.0
PRETRAINED = ("model.name=resnet18", "model.pretrained=true")


def kaggle(folder, age=60.0, **changes):
    """A healthy Kaggle session that began `age` seconds ago."""
    machine = healthy(folder, kind="kaggle", **changes)
    return replace(machine, host=replace(machine.host, session_started=NOON - age))


def words_of(finding):
    return f"{finding.sentence} {finding.evidence} {finding.remedy}"


@pytest.mark.parametrize("name", [name.partition(".")[2] for name in checks_of(session)])
def test_a_healthy_machine_is_silent(name, tmp_path):
    assert found(session, name, subject(healthy(tmp_path))) == []


def test_no_limit_on_a_platform_that_kills(tmp_path):
    (finding,) = found(session, "limit", subject(kaggle(tmp_path)))
    assert finding.severity == "warning" and "--session-limit 9h" in finding.remedy
    assert found(session, "limit", subject(kaggle(tmp_path), session_limit=9 * HOUR)) == []


@pytest.mark.parametrize(("age", "severity"), [(9 * HOUR + 5, "error"), (9 * HOUR - 30, "warning"), (8 * HOUR, None)])
def test_a_limit_that_is_over(age, severity, tmp_path):
    findings = found(session, "time_left", subject(kaggle(tmp_path, age), session_limit=9 * HOUR))
    assert [finding.severity for finding in findings] == ([severity] if severity else [])


@pytest.mark.parametrize(("age", "seen"), [(-600.0, "in the future"), (3 * 24 * HOUR, "3d00h ago"), (11 * HOUR, None)])
def test_a_session_that_can_not_have_begun_then(age, seen, tmp_path):
    findings = found(session, "clock", subject(kaggle(tmp_path, age)))
    assert len(findings) == (seen is not None)
    assert all(seen in words_of(finding) and finding.severity == "warning" for finding in findings)


def test_a_run_folder_that_is_lost_with_the_session(tmp_path):
    (finding,) = found(session, "kept_folder", subject(kaggle(tmp_path), run=Path("/tmp/runs/leaves")))
    assert finding.severity == "warning" and "--out /kaggle/working/runs/leaves" in finding.remedy
    kept = Path("/kaggle/working/runs/leaves")
    assert found(session, "kept_folder", subject(kaggle(tmp_path), run=kept)) == []
    mirrored = subject(kaggle(tmp_path), run=Path("/tmp/runs/leaves"), mirror="s3://somewhere")
    assert found(session, "kept_folder", mirrored) == []


def test_a_run_folder_that_can_not_be(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    for run in (file, file / "run"):
        (finding,) = found(session, "run_folder", subject(healthy(tmp_path), run=run))
        assert finding.severity == "error" and str(file) in finding.sentence and "--out" in finding.remedy
    monkeypatch.setattr(session.os, "access", lambda path, mode: mode == session.os.F_OK)  # the tests may run as root
    (finding,) = found(session, "run_folder", subject(healthy(tmp_path), run=tmp_path / "run"))
    assert finding.severity == "error" and "may not be written" in finding.sentence


def test_a_scratch_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "scratch").touch()  # a file where the folder should be
    (finding,) = found(session, "scratch", subject(healthy(tmp_path)))
    assert finding.severity == "error" and "OUTLAST_CACHE" in finding.remedy


def test_weights_that_can_not_be_fetched(tmp_path):
    offline = healthy(tmp_path, fetching_weights=lambda: "the hub can't be reached")
    (finding,) = found(session, "pretrained_weights", subject(offline, *PRETRAINED, task="plants"))
    assert finding.severity == "error"
    assert "'resnet18'" in finding.sentence and "model.weights=FILE" in finding.remedy
    cached = replace(offline, cached_weights=lambda name: name == "resnet18")
    assert found(session, "pretrained_weights", subject(cached, *PRETRAINED, task="plants")) == []


def test_the_internet_is_not_tried_where_nothing_is_to_be_fetched(tmp_path):
    def never():
        raise AssertionError("the internet was tried")

    machine = healthy(tmp_path, fetching_weights=never)
    for settings in ((), ("model.name=resnet18",), ("model.name=resnet18", "model.weights=file.safetensors")):
        assert found(session, "pretrained_weights", subject(machine, *settings, task="plants")) == []


def test_behind_a_proxy_it_says_that_it_was_not_checked(tmp_path):
    def unknown():
        raise CannotCheck("the internet is behind a proxy")

    machine = healthy(tmp_path, fetching_weights=unknown)
    (finding,) = found(session, "pretrained_weights", subject(machine, *PRETRAINED, task="plants"))
    assert finding.severity == "unchecked" and "proxy" in finding.sentence
