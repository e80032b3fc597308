"""What a plan of several trainings will need on the disk at its worst moment."""

from dataclasses import replace

import pytest

from outlast.config.schema import Saving
from outlast.env.host import Host
from outlast.errors import RunError
from outlast.plan import disk
from outlast.save.space import Sizes
from outlast.task import Call, Train
from toys import plan as toy

ONE = Sizes(checkpoint=100, best=30)
OTHER = replace(toy.LEARNER, name="other")


def training(name, learner=toy.LEARNER, **saving):
    config = toy.smoke().model_copy(update={"saving": Saving(**saving)})
    return Train(name, learner, config, needs=("folds",))


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """checked(stages, sizes): (facts, warnings) on a plain machine with 10,000 bytes free, and what was said."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000})())

    def check(*stages, sizes, begun=False, only=None, gigabytes=None):
        plan = [*stages, Call("folds", toy.write_folds, toy.smoke(), toy.LEARNER)]
        machine = Host("plain", 0.0, tmp_path, 1)
        return disk.check(plan, sizes, tmp_path / "run", machine, gigabytes, begun=begun, only=only)

    return check


def test_finished_trainings_leave_what_is_kept_while_the_next_one_trains(checked):
    first, second = training("a", keep=1), training("b", keep=2)
    facts, warnings = checked(first, second, sizes={"a": ONE, "b": ONE})
    assert facts["most_bytes"] == (30 + 100) + (3 * 100 + 2 * 30)
    assert facts["unknown"] == [] and warnings == []


def test_only_the_best_weights_of_a_finished_training_may_be_kept(checked):
    first = training("a", keep=1, keep_when_finished="best")
    facts, _ = checked(first, training("b", keep=2), sizes={"a": ONE, "b": ONE})
    assert facts["most_bytes"] == 30 + (3 * 100 + 2 * 30)


def test_the_worst_moment_need_not_be_the_last(checked):
    large, small = Sizes(checkpoint=1000, best=10), Sizes(checkpoint=1, best=1)
    stages = (training("a", keep=1, keep_when_finished="best"), training("b", keep=1))
    assert checked(*stages, sizes={"a": large, "b": small})[0]["most_bytes"] == 2 * 1000 + 2 * 10


def test_a_model_that_cannot_be_built_yet_is_taken_to_be_as_large_as_another_of_its_learner(checked, capsys):
    facts, _ = checked(training("a"), training("b"), training("c", OTHER), sizes={"a": ONE})
    assert facts["checkpoint_bytes"] == {"a": 100, "b": 100}
    assert facts["unknown"] == ["c"]
    assert "what c will need on the disk is not known" in capsys.readouterr().err


def test_only_the_stages_that_are_to_be_done_count(checked, tmp_path):
    stages = training("a"), training("b")
    assert checked(*stages, sizes={"a": ONE, "b": ONE}, only="b")[0]["checkpoint_bytes"] == {"b": 100}
    (tmp_path / "run" / "a").mkdir(parents=True)
    (tmp_path / "run" / "a" / "stage.json").write_text("{}")
    assert checked(*stages, sizes={"a": ONE, "b": ONE}, begun=True)[0]["checkpoint_bytes"] == {"b": 100}
    assert len(checked(*stages, sizes={"a": ONE, "b": ONE})[0]["checkpoint_bytes"]) == 2


def test_remedies_that_would_change_nothing_are_not_named(checked):
    with pytest.raises(RunError) as error:
        checked(training("a", keep=1), training("b", keep=1), sizes={"a": ONE, "b": ONE}, gigabytes=1e-7)
    assert "saving.keep=1" not in error.value.hint and "saving.keep_when_finished=best" in error.value.hint
    with pytest.raises(RunError) as error:
        checked(training("a", keep=1), sizes={"a": ONE}, gigabytes=1e-7)
    assert error.value.hint == "give a folder on a larger disk with --out"
