"""A run goes from one machine to another: only what is needed, whole or not at all, and it ends as if it had stayed."""

import gc
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import outlast
from outlast.base import accident
from outlast.base.files import MANIFEST, locked, sealed, write_manifest
from outlast.errors import CheckpointError, OutlastError, RunError, SaveError, UsageError
from outlast.plan import arrivals, carry
from outlast.plan.differences import compare_runs
from toys import plan as toy

STAGES = ["folds", "train-fold0", "train-fold1", "predict-fold0", "predict-fold1", "combine"]
LEFT = ["train-fold0/checkpoints"]  # by a pack of the run in the middle: its best weights are what is needed
STEPS = 12  # of each training, besides two that try what fits into memory


class Crash(BaseException):
    """An accident that nothing in the product catches, like a kill but without a new process."""


class Machine:
    """Trains the toy plan in folders of its own; `steps` counts the training steps of the last session."""

    def __init__(self, folder):
        self.folder, self.steps = folder, 0

    def train(self, name="run", crash=None, **options):
        seen = dict.fromkeys(("step", "combine"), 0)

        def happen(place):
            seen[place] = seen.get(place, 0) + 1
            if crash == (place, seen[place]):
                raise Crash

        overrides = ["saving.every_steps=3", *options.pop("overrides", ())]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(toy, "ACCIDENT", [happen])
            patch.setattr("outlast.plan.session.write_report", lambda run: run / "report.html")
            try:
                return outlast.train(
                    "toys.plan", preset="smoke", out=self.folder / name, overrides=overrides, **options
                )
            except Crash:
                return None
            finally:
                self.steps = seen["step"]


@pytest.fixture(autouse=True, scope="module")
def light():
    # Every training collects garbage once; without all modules to walk through it takes half as long.
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def cached(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTLAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def whole(cached, tmp_path_factory):
    """A run that stayed where it was, to its end."""
    machine = Machine(tmp_path_factory.mktemp("whole"))
    assert machine.train()["status"] == "finished"
    return machine.folder / "run"


@pytest.fixture(scope="module")
def middle(cached, tmp_path_factory):
    """A run that was killed in the middle of its second training; copied by who changes it."""
    machine = Machine(tmp_path_factory.mktemp("middle"))
    assert machine.train(crash=("step", 20)) is None
    assert list((machine.folder / "run/train-fold1/checkpoints").glob("step-*"))
    return machine.folder / "run"


@pytest.fixture(scope="module")
def packed(middle, tmp_path_factory):
    """That run, packed."""
    path = tmp_path_factory.mktemp("packed") / "run.zip"
    outlast.pack(middle, path)
    return path


@pytest.fixture
def there(tmp_path):
    """Another machine."""
    return Machine(tmp_path / "there")


def same(expected, found, left=()):
    """Whether two runs are the same in all but what was left where the pack was made."""
    comparison = compare_runs(expected, found, STAGES)
    assert comparison.tensors > 20
    return [each for each in comparison.differences if each.file not in left] == []


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file()) if folder.exists() else ()
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def size(folder):
    return sum(len(data) for data in contents(folder).values())


# -- going on elsewhere ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.zip", "folder"])
def test_stopped_here_and_finished_there_it_ends_bit_for_bit_as_if_it_had_stayed(whole, middle, there, tmp_path, name):
    home, pack = tmp_path / "home", tmp_path / name
    shutil.copytree(middle, home)
    result = outlast.pack(home, pack)
    assert result["stages"] == {"folds": "done", "train-fold0": "done", "train-fold1": "begun"}
    taken = outlast.unpack(pack, there.folder / "run")
    assert "--out " + str(there.folder / "run") in taken["next_command"]
    assert there.train()["status"] == "finished"
    assert 0 < there.steps < STEPS  # it went on in the middle of the second training
    outlast.pack(there.folder / "run", tmp_path / "back.zip", everything=True)
    outlast.unpack(tmp_path / "back.zip", home)
    assert same(whole, home)
    assert outlast.status(home)["text"]


def test_a_run_folder_that_is_attached_read_only_is_unpacked_as_it_is(whole, middle, there, tmp_path):
    place = tmp_path / "input/session-1/runs"
    shutil.copytree(middle, place / "run")
    for path in [*place.rglob("*"), place]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    outlast.unpack(tmp_path / "input", there.folder / "run")  # as platforms attach it: somewhere below
    assert there.train()["status"] == "finished"
    assert same(whole, there.folder / "run")
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_stages_done_on_two_machines_come_together(whole, there, tmp_path):
    home = Machine(tmp_path / "home")
    home.train(stage="folds")
    outlast.pack(home.folder / "run", tmp_path / "1.zip", stage="train-fold1")
    begun = outlast.unpack(tmp_path / "1.zip", there.folder / "run")
    assert "--stage train-fold1" in begun["next_command"]
    there.train(stage="train-fold1")
    home.train(stage="train-fold0")
    result = outlast.unpack(there.folder / "run", home.folder / "run")
    assert result["stages"] == {"folds": "kept", "train-fold1": "taken over"}
    known = json.loads((home.folder / "run/run.json").read_text())
    assert len(known["sessions"]) == 3 and set(known["rung"]) == {"train-fold0", "train-fold1"}
    again = outlast.unpack(there.folder / "run", home.folder / "run")
    assert set(again["stages"].values()) == {"kept"}
    assert json.loads((home.folder / "run/run.json").read_text()) == known
    assert home.train()["status"] == "finished" and home.steps == 0
    assert same(whole, home.folder / "run")


def test_runs_that_were_begun_apart_come_together_where_they_agree(whole, there, tmp_path):
    home = Machine(tmp_path / "home")
    home.train(stage="folds")
    there.train(crash=("step", 20))
    assert outlast.unpack(there.folder / "run", home.folder / "run")["stages"]["train-fold1"] == "further there"
    assert home.train()["status"] == "finished"
    assert same(whole, home.folder / "run")


# -- attached inputs ---------------------------------------------------------------------------------------------------


def attach(source, inputs):
    """A pack as Kaggle shows it: in a data set it is unpacked into a folder, in a notebook's output it is as it was."""
    inputs.mkdir(parents=True)
    if inputs.match("datasets/*/*"):
        zipfile.ZipFile(source).extractall(inputs / source.stem)
    else:
        shutil.copy(source, inputs)
        write_manifest(inputs, {})  # as our sessions leave it there


@pytest.mark.parametrize("place", ["datasets/me/next", "notebooks/me/first", "input/a/b/c"])
def test_training_goes_on_from_a_pack_that_is_attached(whole, packed, there, tmp_path, place):
    attach(packed, tmp_path / place)
    assert there.train(previous=str(tmp_path / place.partition("/")[0]))["status"] == "finished"
    assert 0 < there.steps < STEPS
    assert same(whole, there.folder / "run", LEFT)


def test_training_goes_on_from_a_pack_that_is_named(whole, packed, there, capsys):
    assert there.train(previous=str(packed))["status"] == "finished"
    assert 0 < there.steps < STEPS
    assert same(whole, there.folder / "run", LEFT)
    assert there.train(previous=str(packed))["status"] == "finished" and there.steps == 0
    assert f"{packed} holds nothing that {there.folder / 'run'} does not have" in capsys.readouterr().err


def test_outputs_of_two_sessions_that_did_different_stages_come_together(whole, there, tmp_path, capsys):
    """The first is attached as a run folder, the second as a pack, and a third of another run beside them."""
    for name, stages in (("a", ("folds", "train-fold0")), ("b", ("folds", "train-fold1"))):
        session = Machine(tmp_path / "input/notebooks/me" / name)
        for stage in stages:
            session.train(stage=stage)
    other = Machine(tmp_path / "input/notebooks/me/c")
    other.train(stage="folds", overrides=["train.seed=4"])
    outlast.pack(session.folder / "run", tmp_path / "input/notebooks/me/b/next.zip", everything=True)
    shutil.rmtree(session.folder / "run")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outlast.plan.arrivals.KAGGLE_INPUT", tmp_path / "input")
        assert there.train(previous="auto")["status"] == "finished" and there.steps == 0
    said = capsys.readouterr().err
    assert "train-fold0 done" in said and "train-fold1 done (taken over)" in said
    assert "not gone on with" in said and "train.seed: 4 -> 3" in said
    assert same(whole, there.folder / "run")


def test_a_damaged_stage_of_an_attached_run_is_done_again_and_the_others_are_not(whole, there, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "input/run")
    for weights in (tmp_path / "input/run/train-fold1/best").rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert there.train(previous=str(tmp_path / "input"))["status"] == "finished"
    assert 0 < there.steps <= STEPS + 2
    assert "that stage is not taken" in capsys.readouterr().err
    assert same(whole, there.folder / "run")


def test_a_damaged_pack_among_the_inputs_is_passed_over_with_a_sentence(whole, packed, there, tmp_path, capsys):
    (tmp_path / "input/a").mkdir(parents=True)
    (tmp_path / "input/a/next.zip").write_bytes(packed.read_bytes()[:-1000])
    with zipfile.ZipFile(tmp_path / "input/a/images.zip", "w") as data:
        data.writestr("leaf.png", b"no pack")
    shutil.copy(packed, tmp_path / "input/whole.zip")
    assert there.train(previous=str(tmp_path / "input"))["status"] == "finished"
    said = capsys.readouterr().err
    assert f"not gone on with: {tmp_path / 'input/a/next.zip'} is refused" in said and "images.zip" not in said
    assert same(whole, there.folder / "run", LEFT)
    with pytest.raises(CheckpointError, match="is refused"):
        there.train("other", previous=str(tmp_path / "input/a"))


def test_what_nothing_reads_stays_where_there_is_little_room(whole, there, tmp_path, monkeypatch, capsys):
    """A stage that nothing reads any more is left, what the task delivers is not, and the run is finished as ever."""
    home = tmp_path / "input/run"
    shutil.copytree(whole, home)
    shutil.rmtree(home / "combine")
    monkeypatch.setattr("outlast.plan.arrivals._SMALL_BYTES", 10)
    monkeypatch.setattr("outlast.plan.arrivals._free", lambda arrival, run: size(home))
    delivered = carry.plan_of(home)[0].deliver(carry.plan_of(home)[1]).models
    assert "train-fold1" not in delivered
    there.train(previous=str(home), overrides=[])
    assert "that nothing reads any more stay there" in capsys.readouterr().err
    run = there.folder / "run"
    assert not list((run / "train-fold1/best").rglob("*.safetensors"))
    assert all(list((run / name / "best").rglob("*.safetensors")) for name in delivered)
    assert there.train()["status"] == "finished" and there.steps == 0
    assert (run / "combine/metrics.json").read_bytes() == (whole / "combine/metrics.json").read_bytes()
    monkeypatch.undo()
    arrivals.complete(run, home)  # with more room
    assert list((run / "train-fold1/best").rglob("*.safetensors"))


def test_what_there_is_no_room_for_is_not_begun_anew(packed, there, tmp_path, monkeypatch):
    (tmp_path / "input").mkdir()
    shutil.copy(packed, tmp_path / "input")
    monkeypatch.setattr("outlast.plan.arrivals.KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setattr("outlast.plan.arrivals._free", lambda arrival, run: 1000)
    with pytest.raises(SaveError, match=r"and there are 1\.0 kB free"):
        there.train(previous="auto")
    assert not (there.folder / "run").exists() and not list(there.folder.glob(".tmp-*"))


def test_a_record_of_somebody_else_among_the_inputs_keeps_nobody_from_training(there, tmp_path, monkeypatch, capsys):
    for name, text in (("a", "[]"), ("b", '{"task": "toys.plan"}')):
        (tmp_path / "input" / name).mkdir(parents=True)
        (tmp_path / "input" / name / "run.json").write_text(text)
    monkeypatch.setattr("outlast.plan.arrivals.KAGGLE_INPUT", tmp_path / "input")
    there.train(previous="auto", stage="folds")
    assert capsys.readouterr().err.count("not gone on with") == 2
    with pytest.raises(UsageError, match="is what it would be unpacked to"):
        outlast.unpack(there.folder / "run", there.folder / "run")


def test_a_folder_that_is_no_run_is_not_replaced_by_one(packed, there):
    thesis = there.folder / "run/chapter.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("mine")
    with pytest.raises(RunError, match="is not a run of Outlast"):
        there.train(previous=str(packed))
    assert contents(there.folder / "run") == {"chapter.txt": b"mine"}


# -- only what is needed -----------------------------------------------------------------------------------------------


def test_what_nothing_needs_any_more_stays_and_still_counts_as_done(whole, there, tmp_path):
    home = Machine(tmp_path / "home")
    home.train(crash=("combine", 1))
    result = outlast.pack(home.folder / "run", tmp_path / "run.zip")
    assert result["left_bytes"] > 0
    names = zipfile.ZipFile(tmp_path / "run.zip").namelist()
    assert not [name for name in names if "/best/" in name or "/checkpoints/" in name]
    assert [name for name in names if name.startswith("predict-fold0/part-")]
    outlast.unpack(tmp_path / "run.zip", there.folder / "run")
    assert there.train()["status"] == "finished" and there.steps == 0
    assert (there.folder / "run/combine/metrics.json").read_bytes() == (whole / "combine/metrics.json").read_bytes()
    assert there.train()["status"] == "finished" and there.steps == 0  # and once more
    with pytest.raises(CheckpointError, match="weights of 'train-fold0' were not carried"):
        outlast.evaluate(there.folder / "run", data=tmp_path)
    outlast.unpack(home.folder / "run", there.folder / "run")
    assert same(whole, there.folder / "run")


def test_a_stage_gets_what_it_reads_and_nothing_of_the_others(middle, whole, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    for name in ("predict-fold1", "combine"):
        shutil.rmtree(part / name)
    outlast.pack(part, tmp_path / "one.zip", stage="predict-fold1")
    names = [name for name in zipfile.ZipFile(tmp_path / "one.zip").namelist() if name.count("/") > 1]
    assert {name.partition("/")[0] for name in names} == {"train-fold1"}
    assert all(name.startswith("train-fold1/best/") for name in names)


def test_a_stage_whose_inputs_were_left_is_refused_before_anything_is_done(middle, there, tmp_path):
    outlast.pack(middle, tmp_path / "1.zip", stage="train-fold1")
    outlast.unpack(tmp_path / "1.zip", there.folder / "run")
    before = contents(there.folder / "run")
    with pytest.raises(RunError, match="'predict-fold0' reads what 'train-fold0' has made, which was not carried"):
        there.train()
    assert contents(there.folder / "run") == before
    assert there.train(stage="train-fold1")["status"] == "stopped"
    with pytest.raises(RunError, match="needs what 'train-fold0' has made"):
        outlast.pack(there.folder / "run", tmp_path / "2.zip")


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [("train-fold7", "there is no stage"), ("folds", "is done already"), ("combine", "needs predict-fold0")],
)
def test_a_stage_that_can_not_be_packed_for_is_refused(middle, tmp_path, stage, sentence):
    with pytest.raises(UsageError, match=sentence):
        outlast.pack(middle, tmp_path / "run.zip", stage=stage)
    assert not (tmp_path / "run.zip").exists()


def test_the_same_run_packed_twice_differs_in_its_date_alone(middle, packed, tmp_path):
    outlast.pack(middle, tmp_path / "again.zip")
    one, other = zipfile.ZipFile(packed), zipfile.ZipFile(tmp_path / "again.zip")
    assert one.namelist() == other.namelist()
    assert all(one.read(name) == other.read(name) for name in one.namelist() if name != MANIFEST)


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(pack, run, sentence, kind=OutlastError):
    """Unpacking fails with a sentence and a hint, and changes nothing."""
    before, beside = contents(run), sorted(run.parent.iterdir()) if run.parent.exists() else None
    with pytest.raises(kind, match=sentence) as failure:
        outlast.unpack(pack, run)
    assert failure.value.hint and len(str(failure.value.message)) < 400
    assert contents(run) == before
    assert (sorted(run.parent.iterdir()) if beside is not None else None) == beside
    assert not list(run.parent.glob(".tmp-*"))


def rezip(source, target, *, change=None, more=(), mode=zipfile.ZIP_STORED):
    """The pack written anew: `change(name, data)` gives other contents, `more` are further entries."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", mode) as new:
        for name in old.namelist():
            data = change(name, old.read(name)) if change else old.read(name)
            if data is not None:
                new.writestr(name, data)
        for entry, data in more:
            new.writestr(entry, data)
    return target


def resealed(source, target, replaced):
    """A pack whose manifest agrees with contents that were changed: {name: data, or None to leave it out}."""
    with zipfile.ZipFile(source) as old:
        files = {name: old.read(name) for name in old.namelist()}
    manifest = json.loads(files.pop(MANIFEST))
    files = {name: data for name, data in {**files, **replaced}.items() if data is not None}
    import hashlib

    kept = {key: value for key, value in manifest.items() if key not in ("files", "sha256")}
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    with zipfile.ZipFile(target, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)
        new.writestr(MANIFEST, json.dumps(sealed(kept, listed)))
    return target


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def test_every_byte_that_is_flipped_is_noticed(packed, tmp_path):
    """One flipped bit in the middle of each file, with the zip's own checksum made to fit."""
    names = [name for name in zipfile.ZipFile(packed).namelist() if zipfile.ZipFile(packed).getinfo(name).file_size]
    for name in names:

        def flip(here, data, name=name):
            at = len(data) // 2
            return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] if here == name else data

        refused(rezip(packed, tmp_path / "bad.zip", change=flip), tmp_path / "run", r"is refused: ", CheckpointError)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        # What is left ends with a whole zip file, which is how torch saves a state.
        (lambda old, new: new.write_bytes(old.read_bytes()[:-1000]), "it is no pack"),
        (lambda old, new: new.write_bytes(old.read_bytes()[:9000]), "no zip file, or a part of one"),
        (lambda old, new: new.write_bytes(b"not a zip"), "no zip file"),
        (lambda old, new: rezip(old, new, more=[("../../evil.txt", b"x")]), "no name of a file inside"),
        (lambda old, new: rezip(old, new, more=[("/etc/evil", b"x")]), "no name of a file inside"),
        (lambda old, new: rezip(old, new, more=[("folds\\..\\evil", b"x")]), "no name of a file inside"),
        (lambda old, new: rezip(old, new, more=[("folds/./evil", b"x")]), "no name of a file inside"),
        (lambda old, new: rezip(old, new, more=[(link("folds/link"), b"/etc/passwd")]), "is a link"),
        (lambda old, new: rezip(old, new, more=[("folds/more.json", b"{}")]), "not in its manifest"),
        (lambda old, new: rezip(old, new, change=lambda n, d: None if n == MANIFEST else d), "it is no pack"),
        (lambda old, new: rezip(old, new, change=lambda n, d: None if n == "split.csv" else d), "'split.csv' is miss"),
        (lambda old, new: rezip(old, new, change=lambda n, d: d + b" " if n == "run.json" else d), "of another size"),
        (lambda old, new: resealed(old, new, {"../evil": b"x"}), "no name of a file inside"),
        (lambda old, new: resealed(old, new, {"evil.py": b"x"}), "evil.py is no part of a run"),
        (lambda old, new: resealed(old, new, {"set-aside/a": b"x"}), "set-aside/a is no part of a run"),
        (lambda old, new: resealed(old, new, {"folds/folds.json": b"{}"}), "is not what the record of 'folds' says"),
        (lambda old, new: resealed(old, new, {"folds/folds.json": None}), "is not what the record of 'folds' says"),
        (lambda old, new: resealed(old, new, {"run.json": None}), "has no run.json"),
        (lambda old, new: resealed(old, new, {"folds/folds.json/x": b"x"}), "is a file and a folder"),
    ],
)  # fmt: skip
def test_a_pack_that_is_not_sound_is_refused_by_name(packed, tmp_path, make, sentence):
    make(packed, tmp_path / "bad.zip")
    refused(tmp_path / "bad.zip", tmp_path / "run", sentence, CheckpointError)
    assert not (tmp_path / "run").exists() and not (tmp_path.parent / "evil.txt").exists()


def test_a_bomb_is_refused_before_a_byte_of_it_is_written(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("outlast.save.archive._HARMLESS_BYTES", 10**6)
    bomb = resealed(packed, tmp_path / "large.zip", {"folds/zeros": bytes(15 * 10**6)})
    small = rezip(bomb, tmp_path / "bomb.zip", mode=zipfile.ZIP_DEFLATED)
    assert small.stat().st_size < 10**5
    refused(small, tmp_path / "run", "would unpack to 15 MB, more than 100 times its size", CheckpointError)


def test_what_has_no_room_is_refused(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("outlast.save.space.shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(9, 8, 1000))
    refused(packed, tmp_path / "run", "and there are 1.0 kB free", OutlastError)


def test_a_file_that_is_larger_than_it_claims_is_refused(packed, tmp_path):
    """The sizes in the zip's own directory are lies: the manifest's are, too."""
    data = bytearray(packed.read_bytes())
    name = b"split.csv"
    at = data.rindex(name) - 46  # its entry in the central directory
    assert data[at : at + 4] == b"PK\x01\x02"
    size = int.from_bytes(data[at + 24 : at + 28], "little")
    data[at + 24 : at + 28] = (size - 10).to_bytes(4, "little")
    (tmp_path / "bad.zip").write_bytes(bytes(data))
    refused(tmp_path / "bad.zip", tmp_path / "run", "'split.csv' is of another size", CheckpointError)


def test_a_folder_with_links_or_damage_is_refused(middle, tmp_path):
    outlast.pack(middle, tmp_path / "pack")
    folds = tmp_path / "pack/folds/folds.json"
    data = folds.read_bytes()
    folds.unlink()
    refused(tmp_path / "pack", tmp_path / "run", "'folds/folds.json' is missing", CheckpointError)
    (tmp_path / "elsewhere.json").write_bytes(data)
    folds.symlink_to(tmp_path / "elsewhere.json")
    refused(tmp_path / "pack", tmp_path / "run", "is a link", CheckpointError)
    folds.unlink()
    folds.write_bytes(data + b" ")
    refused(tmp_path / "pack", tmp_path / "run", "has more than the", CheckpointError)
    folds.write_bytes(data[:-1])
    refused(tmp_path / "pack", tmp_path / "run", "instead of the", CheckpointError)


def test_another_run_is_refused_and_stays_as_it_is(packed, there, tmp_path):
    there.train(crash=("step", 2), overrides=["train.seed=4"])
    refused(packed, there.folder / "run", "is another run", RunError)
    there.train("other", crash=("step", 2), overrides=["train.threads=2"])
    refused(packed, there.folder / "other", "is another run", RunError)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("mine")
    refused(packed, tmp_path / "thesis", "is not a run of Outlast", RunError)
    refused(tmp_path / "thesis", tmp_path / "run", "holds no pack and no run", UsageError)


def test_a_stage_that_was_done_twice_with_other_results_is_a_conflict(whole, packed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    record = json.loads((run / "train-fold0/stage.json").read_text())
    name = next(name for name in record["outputs"] if name.endswith("safetensors"))
    record["outputs"][name]["sha256"] = "0" * 64
    (run / "train-fold0/stage.json").write_text(json.dumps(record))
    refused(packed, run, "contradict each other", RunError)


def test_a_run_that_trains_is_neither_packed_nor_unpacked_into(packed, middle, tmp_path):
    shutil.copytree(middle, tmp_path / "run")
    with locked(tmp_path / ".run.lock", "mine"):
        with pytest.raises(RunError, match="another process is training"):
            outlast.pack(tmp_path / "run", tmp_path / "out.zip")
        with pytest.raises(RunError, match="another process is training"):
            outlast.unpack(packed, tmp_path / "run")
    assert not (tmp_path / "out.zip").exists()


def test_a_damaged_output_is_not_packed(middle, tmp_path):
    shutil.copytree(middle, tmp_path / "run")
    (tmp_path / "run/folds/folds.json").write_text("{}")
    with pytest.raises(RunError, match=r"folds\.json is gone or not what was recorded"):
        outlast.pack(tmp_path / "run", tmp_path / "out.zip")


@pytest.mark.parametrize("name", ["thesis", "run.tar", "run"])
def test_nothing_of_the_users_is_overwritten(middle, tmp_path, name):
    shutil.copytree(middle, tmp_path / "run")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UsageError):
        outlast.pack(tmp_path / "run", tmp_path / name)
    with pytest.raises(UsageError, match="inside of the run"):
        outlast.pack(tmp_path / "run", tmp_path / "run/pack.zip")
    assert contents(tmp_path) == before


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joining", [False, True])
def test_interrupted_anywhere_the_same_command_goes_on(whole, middle, packed, tmp_path, monkeypatch, joining):
    """A run that is there is right at every moment: each of its stages is the old one or the new one, whole."""
    run = tmp_path / "run"
    pack = whole if joining else packed
    if joining:
        shutil.copytree(middle, run)
    done, crashes = False, 0
    for limit in range(1, 200, 7):
        seen = 0

        def happen(place):
            nonlocal seen
            seen += 1
            if seen == limit:  # noqa: B023
                raise Crash

        monkeypatch.setattr(accident, "happen", happen)
        try:
            outlast.unpack(pack, run)
            done = True
            break
        except Crash:
            crashes += 1
            if run.exists() and not joining:
                done = True
                break
    names = {name: data for name, data in contents(run).items() if not name.startswith(".tmp-")}
    assert done and crashes > 3
    if joining:
        assert same(whole, run)
    else:
        with zipfile.ZipFile(packed) as archive:
            assert names == {name: archive.read(name) for name in archive.namelist() if name != MANIFEST}
        assert not list(tmp_path.glob(".tmp-*"))


def test_killed_for_real_while_it_is_put_in_place(whole, middle, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(middle, run)
    words = [sys.executable, "-m", "outlast", "unpack", str(whole), "--out", str(run)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run(words, env={**environment, "OUTLAST_ACCIDENT": "unpack.stage:3"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".tmp-*"))
    assert outlast.status(run)["text"]
    assert "taken over" in outlast.unpack(whole, run)["stages"].values()
    assert same(whole, run) and not list(tmp_path.glob(".tmp-*"))
