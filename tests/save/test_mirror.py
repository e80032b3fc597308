import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest

from outlast.base import accident
from outlast.base.files import write_json
from outlast.errors import CheckpointError, RunError
from outlast.save.bring_back import bring_back
from outlast.save.mirror import Mirror
from outlast.save.snapshot import further, progress, take
from toys.accident import Accident
from toys.run_folder import RUN_ID, contents, go_on, make_run


def store(mirror, run):
    snapshot = take(run)
    index = mirror.store(snapshot, RUN_ID)
    mirror.prune(index)
    snapshot.drop()
    return index


def fetched(url, run):
    """What an empty machine gets."""
    restored = bring_back(Mirror.open(url, run, 0.0), run, None, 0.0)
    return restored, contents(run)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture(params=["folder", "file://", "memory://", "s3://"])
def url(request, tmp_path):
    if request.param == "s3://":
        return request.getfixturevalue("s3").url
    return {
        "folder": str(tmp_path / "mirror"), "file://": f"file://{tmp_path}/a mirror", "memory://": f"memory:/{tmp_path}"
    }[request.param]  # fmt: skip


def test_an_empty_machine_gets_every_byte_back(url, tmp_path):
    run = make_run(tmp_path / "run")
    index = store(Mirror.open(url, run), run)
    restored, found = fetched(url, tmp_path / "elsewhere" / "run")
    assert found == contents(run)
    assert restored.index == index
    assert "snapshot 1" in restored.sentence and "finetune at 100, pretrain done" in restored.sentence
    assert [path.name for path in run.iterdir() if path.name.startswith(".tmp-")] == []
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["run"]


def test_a_large_file_goes_in_parts_and_comes_back(s3, tmp_path):
    run = make_run(tmp_path / "run", megabytes=17)
    store(Mirror.open(s3.url, run), run)
    parts = [path for method, path in s3.requests if method == "PUT" and "finetune/checkpoints" in path]
    assert max(Counter(parts).values()) == 3
    assert fetched(s3.url, tmp_path / "other")[1] == contents(run)


def test_only_what_changed_is_written_and_what_is_needed_no_more_goes(s3, tmp_path):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(s3.url, run)
    store(mirror, run)
    for step in (200, 300):
        s3.requests.clear()
        go_on(run, step)
        shutil.rmtree(run / "finetune" / "checkpoints" / f"step-{step - 100:09d}")
        store(mirror, run)
        written = {path for method, path in s3.requests if method == "PUT"}
        assert len(written) == 6  # three files of a checkpoint, LATEST, metrics and the index
        assert all("finetune" in path or "/index/" in path for path in written)
    left = {*mirror.place.sizes("files")}
    assert not any("step-000000100/model" in name for name in left if "checkpoints" in name)
    assert any("step-000000200/model" in name for name in left)
    assert len(mirror.place.sizes("index")) == 2
    assert fetched(s3.url, tmp_path / "other")[1] == contents(run)


def test_a_new_session_reads_back_what_is_there_instead_of_writing_it_again(s3, tmp_path):
    run = make_run(tmp_path / "run")
    store(Mirror.open(s3.url, run), run)
    s3.requests.clear()
    mirror = Mirror.open(s3.url, run)
    index = store(mirror, run)
    assert index.number == 2
    assert [path for method, path in s3.requests if method == "PUT" and "/files/" in path] == []
    assert len([path for method, path in s3.requests if method == "GET" and "/files/" in path]) == len(index.files)


def test_an_object_that_vanished_from_the_mirror_is_written_again(tmp_path):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(str(tmp_path / "mirror"), run)
    store(mirror, run)
    victim = next((tmp_path / "mirror").glob("files/split.csv.*"))
    victim.unlink()
    store(mirror, run)
    assert victim.is_file()


def test_the_newest_checkpoint_goes_and_not_what_is_half_written_older_or_set_aside(tmp_path):
    run = make_run(tmp_path / "run", 100)
    go_on(run, 200)
    (run / "set-aside" / "old").mkdir(parents=True)
    (run / "set-aside" / "old" / "file").touch()
    for folder in (
        run / ".tmp-x",
        run / "finetune" / "checkpoints" / ".tmp-step",
        run / "finetune/checkpoints/step-000000300",
    ):
        folder.mkdir()
        (folder / "model.safetensors").touch()
    names = take(run).names()
    assert {name for name in names if "checkpoints" in name} == {
        "finetune/checkpoints/LATEST",
        *(
            f"finetune/checkpoints/step-000000200/{name}"
            for name in ("model.safetensors", "training.pt", "manifest.json")
        ),
    }
    assert not any(name.startswith((".tmp", "set-aside")) for name in names)
    assert {"run.json", "config.yaml", "split.csv", "pretrain/stage.json", "finetune/metrics.jsonl"} <= set(names)


def test_every_other_file_of_a_run_goes_along(tmp_path):
    """Also what is not there in every run: what fits into memory, units of a call, splits of learners, a kept plan."""
    run = make_run(tmp_path / "run", 100)
    besides = ("finetune/fit.json", "build/kept/unit-1.json", "split-teacher.csv", "plan.json", "report.html",
               "scores/part-00000.safetensors")  # fmt: skip
    for name in besides:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    there = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert set(besides) < there and set(take(run).names()) == there


@pytest.mark.parametrize("links", [True, False])
def test_a_snapshot_stays_what_it_was_while_training_goes_on(tmp_path, monkeypatch, links):
    run = make_run(tmp_path / "run")
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no links here")))
    before = contents(run)
    snapshot = take(run)
    go_on(run, 200)
    write_json(run / "run.json", {"status": "stopped"})
    shutil.rmtree(run / "finetune" / "checkpoints" / "step-000000100")
    assert contents(snapshot.folder) == before
    assert snapshot.progress["finetune"] == {"step": 100, "finished": False}
    snapshot.drop()
    assert (run / "config.yaml").is_file()


def test_a_file_that_vanishes_while_a_snapshot_is_taken_makes_it_look_again(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    link = os.link

    def link_late(source, target):
        if "step-000000100/training.pt" in str(source) and "checkpoints" in str(source):
            go_on(run, 200)
            shutil.rmtree(run / "finetune" / "checkpoints" / "step-000000100")
        link(source, target)

    monkeypatch.setattr(os, "link", link_late)
    snapshot = take(run)
    assert snapshot.progress["finetune"]["step"] == 200
    assert contents(snapshot.folder) == contents(run)


def test_a_checkpoint_damaged_on_this_machine_is_not_handed_on(tmp_path):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(str(tmp_path / "mirror"), run)
    store(mirror, run)
    go_on(run, 200)
    flip(run / "finetune" / "checkpoints" / "step-000000200" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"step-000000200/model\.safetensors is not what was saved"):
        store(mirror, run)
    assert fetched(str(tmp_path / "mirror"), tmp_path / "other")[0].index.number == 1


def test_a_kill_at_every_place_leaves_a_whole_snapshot(tmp_path, monkeypatch):
    places = Counter()
    monkeypatch.setattr(accident, "happen", lambda place: places.update([place]))

    def three_saves(folder, happen):
        run = make_run(folder / "run", 100)
        mirror = Mirror.open(str(folder / "mirror"), run)
        store(mirror, run)
        known = [contents(run)]
        for step in (200, 300):
            go_on(run, step)
            shutil.rmtree(run / "finetune" / "checkpoints" / f"step-{step - 100:09d}")
            known.append(contents(run))
            if step == 300:
                monkeypatch.setattr(accident, "happen", happen)
            with contextlib.suppress(Accident):
                store(mirror, run)
        monkeypatch.setattr(accident, "happen", None)
        return known

    seen = Counter()
    three_saves(tmp_path / "counted", lambda place: seen.update([place]))
    tried = [
        (place, count) for place, most in seen.items() if place.startswith("mirror.") for count in range(1, most + 1)
    ]
    assert {"mirror.object", "mirror.verify", "mirror.index", "mirror.indexed", "mirror.durable", "mirror.prune"} <= {
        *seen
    }
    for number, (place, count) in enumerate(tried):
        left = Counter({place: count})

        def happen(here, left=left):
            left[here] -= 1
            if left[here] == 0 and here in dict(tried):
                raise Accident(here)

        folder = tmp_path / str(number)
        known = three_saves(folder, happen)
        restored, found = fetched(str(folder / "mirror"), folder / "other")
        done = place in ("mirror.indexed", "mirror.durable", "mirror.prune")
        assert found == known[2 if done else 1], f"{place}:{count}"
        assert "passed over" not in restored.sentence
        # The next session goes on as if nothing had been.
        again = Mirror.open(str(folder / "mirror"), folder / "other")
        go_on(folder / "other", 400)
        store(again, folder / "other")
        assert len(again.place.sizes("index")) == 2
        assert fetched(str(folder / "mirror"), folder / "third")[0].index.progress["finetune"]["step"] == 400


@pytest.mark.parametrize("place", ["mirror.verify:3", "mirror.index:1", "mirror.prune:2"])
def test_a_real_kill_leaves_a_whole_snapshot_on_the_server(s3, tmp_path, place):
    run = make_run(tmp_path / "run", 100)
    mirror = Mirror.open(s3.url, run)
    store(mirror, run)
    go_on(run, 200)
    shutil.rmtree(run / "finetune" / "checkpoints" / "step-000000100")
    store(mirror, run)
    before = contents(run)
    go_on(run, 300)
    shutil.rmtree(run / "finetune" / "checkpoints" / "step-000000200")
    code = (
        "import sys; from pathlib import Path\n"
        "from fsspec.config import conf; conf['s3'] = {'config_kwargs': {'read_timeout': 20}}\n"
        "from outlast.save.mirror import Mirror\n"
        "from outlast.save.snapshot import take\n"
        "run = Path(sys.argv[2])\n"
        "mirror = Mirror.open(sys.argv[1], run)\n"
        "mirror.prune(mirror.store(take(run), sys.argv[3]))\n"
    )
    environment = {**os.environ, "OUTLAST_ACCIDENT": place}
    done = subprocess.run([sys.executable, "-c", code, s3.url, run, RUN_ID], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    _, found = fetched(s3.url, tmp_path / "other")
    assert found == (contents(run) if "prune" in place else before)


def test_a_kill_while_a_run_is_fetched_costs_nothing(s3, tmp_path, accidents):
    run = make_run(tmp_path / "run", 100)
    store(Mirror.open(s3.url, run), run)
    other = make_run(tmp_path / "other", 50)
    theirs = contents(other)
    for place in ("mirror.fetch", "mirror.aside", "mirror.rename"):
        accidents.append(place)
        with pytest.raises(Accident):
            bring_back(Mirror.open(s3.url, other), other, RUN_ID)
        kept = other if other.exists() else tmp_path / "other.before-1"
        assert contents(kept) == theirs
    s3.requests.clear()
    restored = bring_back(Mirror.open(s3.url, other), other, None)
    assert contents(other) == contents(run)
    assert restored.index.number == 1
    assert [path for method, path in s3.requests if method == "GET" and "/files/" in path] == [], "fetched twice"


def test_a_run_that_is_behind_its_mirror_is_kept_under_another_name(tmp_path):
    run = make_run(tmp_path / "run", 300)
    store(Mirror.open(str(tmp_path / "mirror"), run), run)
    other = make_run(tmp_path / "machine" / "run", 100)
    (other / "finetune" / "mine.txt").write_text("kept")
    theirs = contents(other)
    restored = bring_back(Mirror.open(str(tmp_path / "mirror"), other), other, RUN_ID)
    assert contents(other) == contents(run)
    assert contents(restored.aside) == theirs
    assert restored.aside.name == "run.before-1" and str(restored.aside) in restored.sentence
    with (other / "finetune" / "metrics.jsonl").open("a") as stream:
        stream.write("more\n")
    assert contents(restored.aside) == theirs, "the two runs share a file"


@pytest.mark.parametrize("step", [300, 400])
def test_a_run_that_is_as_far_as_its_mirror_stays(tmp_path, step):
    run = make_run(tmp_path / "run", 300)
    store(Mirror.open(str(tmp_path / "mirror"), run), run)
    other = make_run(tmp_path / "machine" / "run", step, seed=1)
    before = contents(other)
    assert bring_back(Mirror.open(str(tmp_path / "mirror"), other), other, RUN_ID) is None
    assert contents(other) == before


def test_a_damaged_checkpoint_on_this_machine_comes_back_from_the_mirror(tmp_path):
    run = make_run(tmp_path / "run", 300)
    store(Mirror.open(str(tmp_path / "mirror"), run), run)
    expected = contents(run)
    flip(run / "finetune" / "checkpoints" / "step-000000300" / "model.safetensors")
    assert bring_back(Mirror.open(str(tmp_path / "mirror"), run), run, RUN_ID) is not None
    assert contents(run) == expected


@pytest.mark.parametrize("damage", ["flip", "missing", "index", "truncated index"])
def test_a_damaged_snapshot_is_passed_over_for_the_one_before_and_named(tmp_path, damage):
    run = make_run(tmp_path / "run", 100)
    mirror = Mirror.open(str(tmp_path / "mirror"), run)
    store(mirror, run)
    before = contents(run)
    go_on(run, 200)
    store(mirror, run)
    victim = next((tmp_path / "mirror").glob("files/finetune/checkpoints/step-000000200/model.*"))
    index = next((tmp_path / "mirror").glob("index/000000002-*"))
    if damage == "flip":
        flip(victim)
    elif damage == "missing":
        victim.unlink()
    elif damage == "index":
        flip(index)
    else:
        os.truncate(index, 100)
    restored, found = fetched(str(tmp_path / "mirror"), tmp_path / "other")
    assert found == before
    assert "snapshot 1" in restored.sentence and "passed over" in restored.sentence
    named = victim.name if "index" not in damage else index.name
    assert named in restored.sentence


def test_an_object_that_the_server_itself_finds_damaged_is_passed_over_too(s3, tmp_path):
    run = make_run(tmp_path / "run", 100)
    mirror = Mirror.open(s3.url, run)
    store(mirror, run)
    before = contents(run)
    go_on(run, 200)
    store(mirror, run)
    s3.fault("damage", "GET", "step-000000200/training.pt", times=10**6)  # its checksum stays what it was
    restored, found = fetched(s3.url, tmp_path / "other")
    assert found == before
    assert "training.pt" in restored.sentence and "is damaged" in restored.sentence


def test_when_nothing_on_the_mirror_verifies_it_says_so(tmp_path):
    run = make_run(tmp_path / "run", 100)
    store(Mirror.open(str(tmp_path / "mirror"), run), run)
    flip(next((tmp_path / "mirror").glob("files/split.csv.*")))
    with pytest.raises(CheckpointError, match=r"no snapshot on the mirror .* verifies") as found:
        fetched(str(tmp_path / "mirror"), tmp_path / "other")
    assert "split.csv" in str(found.value)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("path", ["../outside", "/tmp/outside", "a/../../outside", "a\\..\\outside", "a//b", ""])
def test_an_index_that_names_a_file_outside_the_run_is_refused(tmp_path, path):
    import hashlib

    run = make_run(tmp_path / "run", 100)
    store(Mirror.open(str(tmp_path / "mirror"), run), run)
    index = next((tmp_path / "mirror" / "index").iterdir())
    values = json.loads(index.read_text())
    values["files"][path] = values["files"].pop("split.csv")
    data = json.dumps(values).encode()
    index.unlink()
    index.with_name(f"000000002-{hashlib.sha256(data).hexdigest()[:16]}.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="outside the run"):
        fetched(str(tmp_path / "mirror"), tmp_path / "other")
    assert not (tmp_path / "outside").exists()


def test_two_sessions_on_one_mirror_overwrite_and_remove_nothing_of_each_other(tmp_path):
    url = str(tmp_path / "mirror")
    one, two = make_run(tmp_path / "one", 100), make_run(tmp_path / "two", 150)
    first, second = Mirror.open(url, one), Mirror.open(url, two)
    store(first, one)
    with pytest.raises(RunError, match=r"another session is writing .* nothing there is overwritten"):
        store(second, two)
    go_on(one, 200)
    store(first, one)
    assert fetched(url, tmp_path / "other")[1] == {
        name: data for name, data in contents(one).items() if "checkpoints/step-000000100" not in name
    }


def test_another_run_on_the_mirror_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    mirror = Mirror.open(str(tmp_path / "mirror"), run)
    store(mirror, run)
    again = Mirror.open(str(tmp_path / "mirror"), run)
    with pytest.raises(RunError, match="holds another run"):
        bring_back(again, run, "fedcba")
    with pytest.raises(RunError, match="holds another run"):
        again.check_run("fedcba")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    run = make_run(tmp_path / "run")
    store(Mirror.open(str(tmp_path / "mirror"), run), run)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    assert bring_back(Mirror.open(str(tmp_path / "mirror"), theirs), theirs, None) is None
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("remnant", [[], ["config.yaml"], [".tmp-x"]])
def test_what_a_kill_in_the_first_moments_left_does_not_keep_the_mirrors_run_out(tmp_path, remnant):
    run = make_run(tmp_path / "run")
    store(Mirror.open(str(tmp_path / "mirror"), run), run)
    other = tmp_path / "other"
    other.mkdir()
    for name in remnant:
        (other / name).touch()
    assert bring_back(Mirror.open(str(tmp_path / "mirror"), other), other, None) is not None
    assert contents(other) == contents(run)


@pytest.mark.parametrize(
    ("mirrored", "local", "answer"),
    [
        ({}, {}, False),
        ({"a": (5, False)}, {}, True),
        ({"a": (5, False)}, {"a": (5, False)}, False),
        ({"a": (6, False)}, {"a": (5, False)}, True),
        ({"a": (5, True)}, {"a": (9, False)}, True),
        ({"a": (5, True)}, {"a": (5, True), "b": (1, False)}, False),
        ({"a": (6, False), "b": (1, False)}, {"a": (5, False), "b": (2, False)}, False),
    ],
)
def test_further_is_ahead_in_some_stage_and_behind_in_none(mirrored, local, answer):
    facts = [
        {name: {"step": step, "finished": done} for name, (step, done) in side.items()} for side in (mirrored, local)
    ]
    assert further(*facts) is answer


def test_shards_of_a_prediction_count_as_progress(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "predict").mkdir()
    for number in range(3):
        (run / "predict" / f"part-{number:05d}.safetensors").touch()
    assert progress(run)["predict"] == {"step": 3, "finished": False}
