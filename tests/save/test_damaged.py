"""Whatever happens to a checkpoint on the disk, the next start finds one that verifies, says what it passed over, and
executes nothing of what it reads."""

import contextlib
import json
import os
import pickle
import random
import shutil

import pytest
import torch

from outlast.base.files import read_manifest, write_manifest
from outlast.errors import CheckpointError, RunError
from outlast.save import store
from outlast.save.format import read_state
from outlast.save.resume import choose
from save.conftest import MODEL

FILES = ("model.safetensors", "training.pt", "manifest.json")
OFFSETS = (0, 1, 7, 8, 9, 60, 0.25, 0.5, 0.75, -2, -1)  # bytes from either end, or a share of the file


def flip(path, offset, bit):
    data = bytearray(path.read_bytes())
    where = int(offset * len(data)) if isinstance(offset, float) else offset
    data[where] ^= 1 << bit
    path.write_bytes(bytes(data))


def assert_passed_over(stage, name):
    """The start takes the checkpoint before and names the damaged file; a next save works and keeps a good one."""
    start = stage.start()
    assert start.saved.step == 1
    assert "from step 1, the newest verified checkpoint; passed over: " in start.sentence
    assert str(stage.checkpoints / "step-000000002" / name) in start.sentence
    assert torch.equal(start.state.model["bias"], torch.full((3,), 1.0))
    stage.save(2)  # the run comes to the same step again
    assert stage.start().sentence == "resuming train-one from step 2, the newest verified checkpoint"


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(stage, name, offset):
    victim = stage.checkpoints / "step-000000002" / name
    # The last byte of the manifest is a line's end, which says nothing.
    flip(victim, -3 if (name, offset) == ("manifest.json", -1) else offset, bit=3)
    assert_passed_over(stage, name)


def test_no_flipped_bit_of_a_manifest_changes_what_it_says(stage):
    """One in each byte, for the manifest has nothing but itself to be checked against."""
    victim = stage.checkpoints / "step-000000002" / "manifest.json"
    whole, told, found = victim.read_bytes(), read_manifest(victim.parent), 0
    for offset in range(len(whole)):
        flip(victim, offset, bit=5 * offset % 8)
        try:
            assert read_manifest(victim.parent) == told, offset
        except CheckpointError:
            found += 1
        victim.write_bytes(whole)
    assert found > 0.9 * len(whole)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "one byte short", "one byte long", "empty", "missing", "a folder"])
def test_a_file_that_is_not_whole_is_found(stage, name, damage):
    victim = stage.checkpoints / "step-000000002" / name
    size = victim.stat().st_size
    if damage in ("missing", "a folder"):
        victim.unlink()
        if damage == "a folder":
            victim.mkdir()
    elif damage == "one byte long":
        victim.write_bytes(victim.read_bytes() + b"x")
    else:
        os.truncate(victim, {"truncated": size // 2, "one byte short": size - 2, "empty": 0}[damage])
    assert_passed_over(stage, name)


@pytest.mark.parametrize(
    "text", ["", "not JSON", "[]", "[1, 2]", "null", "3", "{}", '{"files": []}', '{"files": {"training.pt": 3}}',
             '{"sha256": "x", "files": {}}', "[" * 100_000, "\xff"]
)  # fmt: skip
def test_a_manifest_that_is_none_is_found(stage, text):
    (stage.checkpoints / "step-000000002" / "manifest.json").write_bytes(text.encode("latin-1"))
    assert_passed_over(stage, "manifest.json")


def test_a_file_in_place_of_a_checkpoint_and_an_empty_one_are_passed_over(stage):
    (stage.checkpoints / "step-000000008").write_text("?")
    (stage.checkpoints / "step-000000009").mkdir()
    start = stage.start()
    assert start.saved.step == 2
    assert "step-000000008" in start.sentence and "step-000000009" in start.sentence


def test_when_nothing_verifies_the_start_is_refused_and_nothing_is_removed(stage):
    for folder in stage.checkpoints.glob("step-*"):
        flip(folder / "training.pt", 0.5, 0)
    before = stage.names()
    with pytest.raises(CheckpointError, match="none of the checkpoints") as caught:
        stage.start()
    assert len(caught.value.details) == 2 and caught.value.hint
    with pytest.raises(RunError, match="no checkpoint that verifies"):
        choose(stage.folder, "must", model_hash=MODEL)
    assert stage.names() == before


def test_a_wrong_or_missing_latest_misleads_nobody(stage):
    for text in ("step-000000001\n", "step-000000777\n", "../../etc\n", None):
        if text is None:
            (stage.checkpoints / "LATEST").unlink()
        else:
            (stage.checkpoints / "LATEST").write_text(text)
        assert stage.start().saved.step == 2


def test_rubbish_of_interrupted_saves_is_not_taken_and_goes(stage):
    """Also where it is whole: without its name it was never said to be saved. What was being replaced comes back."""
    shutil.copytree(stage.checkpoints / "step-000000002", stage.checkpoints / ".tmp-step-000000007-abc")
    (stage.checkpoints / ".tmp-LATEST-abc").write_text("step-00")
    outgoing = stage.checkpoints / ".tmp-replaced-abc"
    outgoing.mkdir()
    (stage.checkpoints / "step-000000002").rename(outgoing / "step-000000002")
    assert stage.start().saved.step == 2
    store.clear_interrupted(stage.folder)
    assert stage.names() == ["LATEST", "step-000000001", "step-000000002"]
    assert stage.start().saved.step == 2


# Checkpoints of an attacker, who can write a manifest that matches.


class Malicious:
    """Executed by pickle when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def forged(folder):
    write_manifest(folder, read_manifest(folder))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("way", ["torch.save", "torch.save, old format", "pickle", "pickle inside a state"])
def test_a_pickle_in_place_of_the_training_state_is_refused_and_not_executed(stage, tmp_path, way):
    folder, mark = stage.checkpoints / "step-000000002", tmp_path / "executed"
    victim = folder / "training.pt"
    if way == "pickle":
        victim.write_bytes(pickle.dumps(Malicious(mark)))
    elif way == "pickle inside a state":
        part = torch.load(victim, weights_only=True)
        torch.save({**part, "rung": Malicious(mark)}, victim)
    else:
        torch.save(Malicious(mark), victim, _use_new_zipfile_serialization=way == "torch.save")
    forged(folder)
    with pytest.raises(CheckpointError, match=r"training\.pt is refused: it can't be read without executing code"):
        stage.start()
    assert not mark.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(victim, weights_only=False)
    assert mark.exists()  # it would have been


@pytest.mark.parametrize("way", ["torch.save", "pickle"])
def test_a_pickle_in_place_of_the_weights_is_refused_and_not_executed(stage, tmp_path, way):
    folder, mark = stage.checkpoints / "step-000000002", tmp_path / "executed"
    victim = folder / "model.safetensors"
    if way == "pickle":
        victim.write_bytes(pickle.dumps(Malicious(mark)))
    else:
        torch.save(Malicious(mark), victim)
    forged(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable safetensors file"):
        stage.start()
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../secret", "inner/../../secret", "{absolute}", "..", "a\0b", ""])
def test_a_manifest_that_names_files_outside_its_folder_is_passed_over(stage, tmp_path, name, sealed):
    folder = stage.checkpoints / "step-000000002"
    (stage.checkpoints / "secret").write_text("x")
    name = name.replace("{absolute}", str(stage.checkpoints / "secret"))
    manifest = read_manifest(folder)
    manifest["files"][name] = manifest["files"]["training.pt"]
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    start = stage.start()
    assert start.saved.step == 1
    assert ("names a file outside its folder" if name else "is missing") in start.sentence


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_folder_is_passed_over(stage, tmp_path, name):
    """Even to the very bytes: what a checkpoint is lies in its folder, and goes where the folder goes."""
    victim = stage.checkpoints / "step-000000002" / name
    victim.rename(tmp_path / name)
    victim.symlink_to(tmp_path / name)
    assert_passed_over(stage, "manifest.json")


def test_a_linked_folder_and_a_link_in_a_circle_are_passed_over(stage, tmp_path, sealed):
    outside = tmp_path / "outside"
    outside.mkdir()
    for step in (1, 2):
        folder = stage.checkpoints / f"step-{step:09d}"
        (folder / "training.pt").rename(outside / "training.pt")
        manifest = read_manifest(folder)
        manifest["files"]["inner/training.pt"] = manifest["files"].pop("training.pt")
        (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    (stage.checkpoints / "step-000000001" / "inner").symlink_to("inner")
    (stage.checkpoints / "step-000000002" / "inner").symlink_to(outside)
    with pytest.raises(CheckpointError) as caught:
        stage.start()
    assert "names a file outside its folder" in caught.value.details[0]
    assert "is missing" in caught.value.details[1] or "cannot be read" in caught.value.details[1]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bytes_that_nobody_wrote_are_refused_in_one_sentence(stage):
    """Random damage under a manifest that matches: it reads, or it is a CheckpointError, and nothing else."""
    folder = stage.checkpoints / "step-000000002"
    chance, refused = random.Random(0), 0
    for name in ("training.pt", "model.safetensors"):
        whole = (folder / name).read_bytes()
        for _ in range(300):
            data = bytearray(whole)
            where = chance.randrange(len(data))
            data[where : where + 6] = chance.randbytes(chance.choice((1, 6)))
            (folder / name).write_bytes(data if chance.random() < 0.8 else data[:where])
            try:
                read_state(folder)
            except CheckpointError:
                refused += 1
        (folder / name).write_bytes(whole)
    assert refused > 200
