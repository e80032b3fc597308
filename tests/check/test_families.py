"""All families together, on a whole task: a sound one gives no error, and a fault in the data stops no other check."""

from pathlib import Path

from outlast.check.finding import checks_of
from outlast.plan import preflight
from toys.subjects import of_pictures, pictures

HERE = Path(__file__).parent


def test_a_sound_task_has_no_errors_and_every_check_ran(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = preflight.check(preflight.Question(task="toys.one", preset="smoke"))
    assert result["errors"] == 0, result["text"]
    # The toy's validation rows are all of one class.
    ours = [
        one for one in result["findings"] if one["severity"] == "warning" and one["id"].startswith(("model", "cost"))
    ]
    assert ours == []
    assert {"data.counts", "model.builds", "cost.time"} <= {finding["id"] for finding in result["findings"]}
    assert len(result["ran"]) >= 40 and not (tmp_path / "runs").exists()


def test_damaged_files_stop_no_other_check(tmp_path):
    root = pictures(tmp_path)
    (root / "a" / "00.jpg").write_bytes(b"no picture")
    made = of_pictures(tmp_path, root)
    families = [family for family in preflight.FAMILIES if family not in preflight.BEFORE_TRAINING]
    found = list(preflight.run(families, made))
    assert "samples.damaged" in {finding.id for finding in found if finding.severity == "error"}
    # The toy's model takes one channel: that is found too.
    assert "model.learns" in {finding.id for finding in found if finding.severity == "error"}
    assert {finding.id for finding in found if finding.severity == "unchecked"} >= {"cost.unmeasured", "model.loss"}


def test_every_check_has_a_test_that_names_it():
    tests = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    names = [
        f"{family.__name__.rpartition('.')[2]}.{name.rpartition('.')[2]}"
        for family in preflight.FAMILIES
        for name in checks_of(family)
    ]
    ours = [name for name in names if name.split(".")[0] in ("data", "files", "samples", "model", "cost")]
    assert len(ours) >= 40 and [name for name in ours if name not in tests] == []
