"""Runs that don't fit what is asked of them: each is refused by name, and stays byte for byte as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bad_input.conftest import SETTINGS, photo, write_leaves
from outlast.base.files import read_manifest, write_manifest


@pytest.fixture
def train_again(refused):
    """The command that goes on with a run is refused, and the run stays as it was."""

    def again(run, data, *more, names=(), task="plants"):
        return refused("train", task, "--data", data, "--out", run, *SETTINGS, *more, names=names, keeps=run)

    return again


# -- going on with a run -----------------------------------------------------------------------------------------------


def test_a_run_of_another_task_is_refused(trained, refused):
    run, data = trained
    words = ("train", "toys.plan", "--preset", "smoke", "--data", data, "--out", run)
    refused(*words, names=[run, "'plants'", "'toys.plan'"], keeps=run)


def test_a_run_made_with_other_settings_is_refused_with_the_differences(trained, train_again):
    run, data = trained
    message = train_again(run, data, "train.epochs=3", "train.seed=1", names=[run, "--out"])
    assert "train.epochs: 2 -> 3" in message and "train.seed: 0 -> 1" in message


def test_an_ordinary_folder_is_refused_as_a_run(leaves, train_again):
    train_again(leaves, leaves, names=[leaves, "not a run"])


def test_a_file_is_refused_as_a_run(leaves, refused):
    path = leaves / "rust" / "0.jpg"
    refused("train", "plants", "--data", leaves, "--out", path, *SETTINGS, names=[path, "not a run"], keeps=leaves)
    inside = path / "run"
    refused("train", "plants", "--data", leaves, "--out", inside, *SETTINGS, names=[path, "--out"], keeps=leaves)


def test_a_file_that_was_added_to_the_data_is_named(a_run, train_again):
    run, data = a_run
    Image.fromarray(photo(99)).save(data / "rust" / "new.jpg")
    train_again(run, data, names=["1 files added", "added: rust/new.jpg", "--out"])


def test_a_file_that_was_removed_from_the_data_is_named(a_run, train_again):
    run, data = a_run
    (data / "rust" / "4.jpg").unlink()
    train_again(run, data, names=["1 gone", "gone: rust/4.jpg", "--out"])


def test_a_file_that_was_changed_in_the_data_is_named(a_run, train_again):
    run, data = a_run
    Image.fromarray(photo(99)).save(data / "rust" / "4.jpg")
    train_again(run, data, names=["1 changed", "changed contents: rust/4.jpg", "--out"])


def test_a_file_that_went_to_another_class_is_named(a_run, train_again):
    run, data = a_run
    (data / "rust" / "4.jpg").rename(data / "blight" / "from-rust.jpg")
    train_again(run, data, names=["1 files added, 1 gone", "added: blight/from-rust.jpg", "gone: rust/4.jpg"])


def test_a_file_that_went_to_another_group_is_named(a_run, train_again):
    run, data = a_run
    (data / "groups.csv").write_text("file,group\nrust/4.jpg,leaf\nrust/5.jpg,leaf\n")
    train_again(run, data, names=["changed group: rust/4.jpg", "changed group: rust/5.jpg"])


def test_data_that_can_no_longer_be_split_is_said_to_be_other_data_than_the_run_had(a_run, train_again):
    run, data = a_run
    for number in range(1, 10):
        (data / "rust" / f"{number}.jpg").unlink()
    train_again(run, data, names=["class rust has a single image", "bring back the data that", run])


def test_other_data_is_refused(a_run, train_again, tmp_path):
    train_again(
        a_run[0], write_leaves(tmp_path / "other", 4, {"a": (9, 9, 9), "b": (99, 99, 99)}), names="gone: blight/0.jpg"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("run.json", "{"), ("run.json", "[]"), ("config.yaml", "train: ["), ("config.yaml", "preset: smoke\nmodel: 3\n"),
     ("split.csv", "nonsense\n"), ("split.csv", "")],
)  # fmt: skip
def test_a_damaged_record_is_named(a_run, train_again, name, content):
    run, data = a_run
    (run / name).write_text(content)
    train_again(run, data, names=run / name)


def as_saved(folder, **changes):
    """Make the manifest of a checkpoint agree with its files, as if it had been saved so."""
    write_manifest(folder, {**read_manifest(folder), **changes})


def checkpoint(run):
    (found,) = (run / "train" / "checkpoints").glob("step-*")
    return found


def test_a_checkpoint_of_another_model_is_refused(half_a_run, train_again):
    run, data = half_a_run
    folder = checkpoint(run)
    save_file({"stem.weight": torch.zeros(3, 3)}, folder / "model.safetensors")
    as_saved(folder, model_hash="another")
    train_again(run, data, names=[folder, "another model"])


def test_a_checkpoint_with_a_pickle_inside_is_refused_and_not_executed(half_a_run, train_again, tmp_path):
    run, data = half_a_run
    folder, mark = checkpoint(run), tmp_path / "executed"

    class Malicious:
        def __reduce__(self):
            return (open, (str(mark), "w"))

    torch.save({"step": Malicious()}, folder / "training.pt")
    as_saved(folder)
    assert "weights_only" not in train_again(run, data, names=folder / "training.pt")
    assert not mark.exists()


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_damaged_checkpoint_is_refused_where_there_is_no_other(half_a_run, train_again, resume):
    run, data = half_a_run
    path = checkpoint(run) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    train_again(run, data, "--resume", resume, names=[path, "--resume"])


def test_must_resume_is_refused_where_there_is_nothing(refused_training, leaves):
    refused_training(leaves, "--resume", "must", names=["no run", "--resume auto"])


def test_must_resume_is_refused_where_nothing_was_saved(half_a_run, train_again):
    run, data = half_a_run
    shutil.rmtree(run / "train" / "checkpoints")
    train_again(run, data, "--resume", "must", names=[run, "nothing to resume"])


def test_must_resume_goes_on_where_a_checkpoint_is(half_a_run, command):
    run, data = half_a_run
    ended = command("train", "plants", "--data", data, "--out", run, *SETTINGS, "--resume", "must")
    assert ended.code == 0, ended.err
    assert "resuming train from step 2" in ended.err


def test_never_resume_with_bad_data_leaves_the_old_run_in_its_place(a_run, train_again):
    run, data = a_run
    (data / "rust" / "4.jpg").write_text("not an image")
    train_again(run, data, "--resume", "never", names="4.jpg")


def test_never_resume_keeps_the_old_run_beside_the_new_one(a_run, command):
    run, data = a_run
    (data / "rust" / "4.jpg").unlink()
    before = (run / "run.json").read_bytes()
    ended = command("train", "plants", "--data", data, "--out", run, *SETTINGS, "--resume", "never", "train.seed=5")
    assert ended.code == 0, ended.err
    assert (run.with_name("run.before-1") / "run.json").read_bytes() == before
    assert "starting train fresh" in ended.err


def test_a_run_that_another_process_trains_is_refused(leaves, command, tmp_path):
    run = tmp_path / "run"
    words = ["train", "plants", "--data", str(leaves), "--out", str(run), *SETTINGS, "train.epochs=50000"]
    with subprocess.Popen(
        [sys.executable, "-m", "outlast", *words], stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=os.environ
    ) as other:
        assert other.stderr is not None
        try:
            for line in other.stderr:
                if line.startswith("epoch 1/"):
                    break
            ended = command(*words)
            assert other.poll() is None
        finally:
            other.terminate()
        rest = other.stderr.read()
    assert ended.code == 1
    assert f"error: another process is training in {run}" in ended.err and "What to do: " in ended.err
    assert other.returncode == 0, rest
    assert "stopped in time" in rest


# -- using a run -------------------------------------------------------------------------------------------------------

USES = {
    "eval": ("eval", "RUN"),
    "predict": ("predict", "RUN", "IMAGE"),
    "report": ("report", "RUN"),
    "report text": ("report", "RUN", "--text"),
    "export": ("export", "RUN", "--to", "weights.pth"),
    "status": ("status", "RUN"),
}


def use(name, run, data):
    words = {"RUN": run, "IMAGE": data / "rust" / "0.jpg"}
    return [words.get(word, word) for word in USES[name]]


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("place", ["missing", "ordinary folder", "file"])
def test_what_is_no_run_is_refused_by_every_command(name, place, refused, leaves):
    run = {"missing": leaves / "nowhere", "ordinary folder": leaves, "file": leaves / "rust" / "1.jpg"}[place]
    refused(*use(name, run, leaves), names=run, keeps=leaves)


@pytest.mark.parametrize("name", ["eval", "predict", "export"])
@pytest.mark.parametrize("damage", ["no weights", "cut weights", "other weights", "no facts", "no config"])
def test_a_run_that_is_not_whole_is_refused_by_what_uses_it(name, damage, refused, a_run):
    run, data = a_run
    (folder,) = (run / "train" / "best").glob("step-*")
    named = folder
    if damage == "no weights":
        shutil.rmtree(run / "train" / "best")
        named = run / "train"
    elif damage == "cut weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:100])
    elif damage == "other weights":
        save_file({"stem.weight": torch.zeros(3, 3)}, folder / "model.safetensors")
        as_saved(folder)
    elif damage == "no facts":
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "facts": {}}))
        named = run / "run.json"
    else:
        (run / "config.yaml").unlink()
        named = run / "config.yaml"
    refused(*use(name, run, data), names=named, keeps=run)


def test_eval_refuses_classes_that_the_run_does_not_know(trained, refused, tmp_path):
    data = write_leaves(tmp_path / "other", 2, {"rust": (200, 110, 30), "mildew": (230, 230, 230)})
    refused("eval", trained[0], "--data", data, names=[data, "mildew", "blight, healthy, rust"], keeps=trained[0])


def test_eval_refuses_a_folder_without_images_and_a_missing_one(trained, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("eval", trained[0], "--data", tmp_path / "empty", names=[tmp_path / "empty", "no images"], keeps=trained[0])
    refused("eval", trained[0], "--data", tmp_path / "gone", names=[tmp_path / "gone", "not exist"], keeps=trained[0])
    (tmp_path / "a.csv").write_text("file\n")
    refused("eval", trained[0], "--data", tmp_path / "a.csv", names=[tmp_path / "a.csv", "not a folder"])


def test_eval_says_that_the_data_of_the_run_is_gone(a_run, refused):
    run, _ = a_run
    record = json.loads((run / "run.json").read_text())
    record["data"]["classifier"]["path"] = "/no/leaves"
    (run / "run.json").write_text(json.dumps(record))
    refused("eval", run, names=["/no/leaves", "not exist"], keeps=run)


def test_eval_names_a_damaged_image(trained, refused, leaves):
    (leaves / "rust" / "2.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    refused("eval", trained[0], "--data", leaves, names=leaves / "rust" / "2.jpg", keeps=trained[0])


def test_predict_names_a_missing_file(trained, refused, leaves):
    good, gone = leaves / "rust" / "0.jpg", leaves / "rust" / "gone.jpg"
    refused("predict", trained[0], good, gone, names=gone, keeps=trained[0])


def test_predict_writes_nothing_if_one_of_the_files_is_damaged(trained, refused, leaves, tmp_path):
    broken = leaves / "rust" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    refused("predict", trained[0], leaves / "rust", names=broken, keeps=trained[0])
    refused("predict", trained[0], leaves / "rust", "--to", tmp_path / "to.csv", names=broken, keeps=trained[0])
    assert not (tmp_path / "to.csv").exists()


def test_predict_refuses_a_folder_without_images_and_a_file_that_is_none(trained, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused("predict", trained[0], tmp_path / "empty", names=tmp_path / "empty", keeps=trained[0])
    (tmp_path / "notes.txt").write_text("leaves")
    refused("predict", trained[0], tmp_path / "notes.txt", names=[tmp_path / "notes.txt", "not an image"])


def test_predict_refuses_a_name_that_is_not_utf8(trained, refused, leaves):
    os.rename(os.fsencode(leaves / "rust" / "0.jpg"), os.fsencode(leaves / "rust") + b"/caf\xe9.jpg")
    refused("predict", trained[0], leaves / "rust", names=["caf\\udce9.jpg", "UTF-8"], keeps=trained[0])


def test_results_that_cannot_be_written_are_refused_before_the_work(trained, refused, leaves, tmp_path):
    image = leaves / "rust" / "0.jpg"
    refused("predict", trained[0], image, "--to", tmp_path, names=[tmp_path, "folder"], code=2)
    refused("predict", trained[0], image, "--to", image / "to.csv", names=[image, "not a folder"], code=2)
    (tmp_path / "model.pth").mkdir()
    refused("export", trained[0], "--to", tmp_path / "model.pth", names=["model.pth", "folder"], code=2)


def test_a_cache_that_cannot_be_written_is_named(trained, refused, refused_training, leaves, monkeypatch):
    image = leaves / "rust" / "0.jpg"
    monkeypatch.setenv("OUTLAST_CACHE", str(image / "cache"))
    refused_training(leaves, names=[image / "cache", "OUTLAST_CACHE"])
    refused("predict", trained[0], image, names=[image / "cache", "OUTLAST_CACHE"], keeps=trained[0])


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": 1}'])
def test_a_cache_of_another_version_is_made_anew(trained, command, monkeypatch, tmp_path, content):
    run, data = trained
    monkeypatch.setenv("OUTLAST_CACHE", str(tmp_path / "cache"))
    words = ("predict", run, data / "rust", "--to", "-")
    first = command(*words)
    (meta,) = (tmp_path / "cache" / "samples").glob("*/meta.json")
    meta.write_text(content)
    assert command(*words).out == first.out != ""
    assert len(meta.read_text()) > len(content)


@pytest.mark.parametrize("name", ["model.tflite", "model", "model.bin"])
def test_export_to_an_unknown_format_is_refused_with_the_known_ones(trained, refused, tmp_path, name):
    refused("export", trained[0], "--to", tmp_path / name, names=[name, ".safetensors, .pth"], code=2, keeps=trained[0])
    assert not (tmp_path / name).exists()


# -- in a process of its own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["eval", "nowhere"], 1, "nowhere"),
        (["train", "plants", "--data", "nowhere", "--out", "run"], 1, "nowhere"),
        (["train", "plants", "--resume", "yes"], 2, "'yes'"),
        (["trian"], 2, "trian"),
    ],
)
def test_a_refused_command_ends_with_its_exit_code_and_without_a_traceback(words, code, said, tmp_path):
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "outlast", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == code
    assert said in ended.stderr and "Traceback" not in ended.stderr and ended.stdout == ""
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    assert time.monotonic() - began < 60


def test_a_refusal_is_json_too_where_json_was_asked_for(command, tmp_path):
    ended = command("eval", tmp_path / "nowhere", "--json")
    assert ended.code == 1
    told = json.loads(ended.out)
    assert told["status"] == "failed" and str(tmp_path / "nowhere") in told["error"] and told["hint"]
