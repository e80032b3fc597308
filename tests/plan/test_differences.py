import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from outlast.base.files import write_manifest
from outlast.loop.trace import TracedStep, sample_hashes
from outlast.plan.differences import compare_runs
from outlast.plan.traces import first_parting, repeated
from outlast.save import store
from outlast.state import RunState

STAGES = ["train", "scores"]


def state(step=6, **changes):
    weights = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([0.0, float("nan")])}
    values = {"model": weights, "optimizer": optimizer([1.0, 1.0, 1.0], 0.1), "step": step, "epoch": 2}
    return RunState(**{**values, **changes})


def optimizer(average, rate):
    return {"state": {0: {"exp_avg": torch.tensor(average)}}, "param_groups": [{"lr": rate}]}


@pytest.fixture
def runs(tmp_path):
    """A finished run and a copy of it, which differ in all that is made of times."""
    one, other = tmp_path / "one", tmp_path / "other"
    for run, seconds in ((one, 1.0), (other, 2.0)):
        store.save(run / "train", state(train_seconds=seconds, sessions=round(seconds)), {}, keep=1)
        (run / "scores").mkdir()
        result = {"best_score": 0.5, "train_seconds": seconds, "from_step": seconds}
        (run / "train" / "stage.json").write_text(json.dumps({"seconds": seconds, "outputs": {}, "result": result}))
        (run / "train" / "metrics.jsonl").write_text('{"step": 3, "loss": 0.25}\n{"step": 6, "loss": 0.125}\n')
        (run / "scores" / "metrics.json").write_text(json.dumps({"accuracy": 0.5, "predict_seconds": seconds}))
        (run / "scores" / "table.csv").write_text(f"a,b,milliseconds\n1,2,{seconds}\n")
        write_manifest(run / "scores", {"stage": "scores"})
        (run / "run.json").write_text(json.dumps({"task": "toy", "config_hash": "1", "created": seconds}))
        (run / "report.html").write_text(f"{seconds}")
        save_file({"logits": torch.tensor([[1.0, -2.0], [3.0, 4.0]])}, run / "scores" / "part-00000.safetensors")
    return one, other


def compared(runs):
    return compare_runs(*runs, STAGES).differences


def test_runs_that_differ_in_times_alone_are_equal(runs):
    comparison = compare_runs(*runs, STAGES)
    assert comparison.differences == []
    assert comparison.files == 7
    assert comparison.tensors == 4


def test_a_manifest_that_names_other_files_is_a_difference(runs):
    path = runs[1] / "scores" / "manifest.json"
    known = json.loads(path.read_text())
    assert list(known["files"]) == ["metrics.json", "table.csv"]
    path.write_text(json.dumps({**known, "files": {"metrics.json": known["files"]["metrics.json"]}}))
    assert [found.what for found in compared(runs)] == ["files"]


def test_a_cell_of_a_table_that_is_no_time_is_compared(runs):
    (runs[1] / "scores" / "table.csv").write_text("a,b,milliseconds\n1,2.0,9\n")
    (found,) = compared(runs)
    assert (found.file, found.what, found.note) == ("scores/table.csv", "line 2.b", "'2' and '2.0'")
    (runs[1] / "scores" / "table.csv").write_text("a,b,milliseconds\n1,2,9\n3,4,9\n")
    (found,) = compared(runs)
    assert found.what == "line 3"


def test_a_tensor_that_differs_is_named_with_how_much_and_how_often(runs):
    save_file({"logits": torch.tensor([[1.0, -2.5], [3.25, 4.0]])}, runs[1] / "scores" / "part-00000.safetensors")
    (found,) = compared(runs)
    assert (found.file, found.what) == ("scores/part-00000.safetensors", "logits")
    assert (found.largest, found.elements, found.size) == (0.5, 2, 4)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"optimizer": optimizer([1.0, 1.0, 1 + 2**-23], 0.1)}, "optimizer.state.0.exp_avg"),
        ({"optimizer": optimizer([1.0, 1.0, 1.0], 0.1 + 2**-56)}, "optimizer.param_groups[0].lr"),
        ({"model": {**state().model, "layer.bias": torch.tensor([-0.0, float("nan")])}}, "model.layer.bias"),
        ({"model": {**state().model, "layer.bias": torch.tensor([0, 0])}}, "model.layer.bias"),
        ({"best_score": 0.25}, "best_score"),
        ({"average": {"weight": torch.ones(1)}}, "average"),
    ],
)
def test_the_last_bit_of_the_last_state_counts(runs, changes, what):
    shutil.rmtree(runs[1] / "train" / "checkpoints")
    store.save(runs[1] / "train", state(**changes), {}, keep=1)
    (found,) = compared(runs)
    assert (found.file, found.what) == ("train/checkpoints/step-000000006", what)


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("train/metrics.jsonl", '{"step": 3, "loss": 0.25}\n{"step": 6, "loss": 0.126}\n', "line 2.loss"),
        ("train/metrics.jsonl", '{"step": 3, "loss": 0.25}\n{"step": 6, "loss": 0.125}', "length in bytes"),
        ("train/stage.json", '{"seconds": 1, "outputs": {}, "result": {"best_score": 0.75}}', "result.best_score"),
        ("scores/metrics.json", '{"accuracy": 0.25}', "accuracy"),
        ("scores/metrics.json", "half", "the file"),
        ("scores/table.csv", "a,b\n1,3\n", "line 2.b"),
        ("scores/more.csv", "a", "the file"),
        ("run.json", '{"task": "toy", "config_hash": "2"}', "config_hash"),
    ],
)
def test_a_file_that_differs_is_named_with_the_place(runs, file, text, what):
    (runs[1] / file).write_text(text)
    assert [(found.file, found.what) for found in compared(runs)] == [(file, what)]


def test_a_checkpoint_of_another_step_and_one_that_is_damaged_are_differences(runs):
    store.save(runs[1] / "train", state(step=7), {}, keep=1)
    assert [found.what for found in compared(runs)] == ["step"]
    next((runs[1] / "train" / "checkpoints").glob("*/training.pt")).write_bytes(b"damaged")
    assert [found.what for found in compared(runs)] == ["the checkpoints", "the newest checkpoint"]


def steps(*losses, stage="train", first=1, samples=(("a", "1"), ("b", "2"))):
    return [TracedStep(stage, first + number, 0, samples, loss.hex()) for number, loss in enumerate(losses)]


def test_the_first_step_that_differs_is_found_also_where_it_was_done_again_rightly():
    whole = steps(0.5, 0.25, 0.125, 0.1)
    assert first_parting(whole, [steps(0.5, 0.25), steps(0.25, 0.125, 0.1, first=2)], STAGES) is None
    found = first_parting(whole, [steps(0.5, 0.26), steps(0.25, 0.125, 0.1, first=2)], STAGES)
    assert (found.step, found.session, found.sample) == (2, 1, None)
    assert "0.25 and 0.26" in found.note


def test_the_first_sample_that_differs_is_named():
    whole = steps(0.5, 0.25)
    changed = steps(0.25, first=2, samples=(("a", "1"), ("b", "3")))
    found = first_parting(whole, [steps(0.5), changed], STAGES)
    assert (found.step, found.session, found.sample) == (2, 2, "b")
    other = first_parting(whole, [steps(0.5), steps(0.25, first=2, samples=(("c", "1"), ("b", "2")))], STAGES)
    assert (other.sample, "c" in other.note) == ("a", True)


def test_a_step_that_no_session_did_and_one_too_many_are_differences():
    whole = steps(0.5, 0.25, 0.125)
    assert first_parting(whole, [steps(0.5), steps(0.125, first=3)], STAGES).step == 2
    assert first_parting(whole, [steps(0.5, 0.25, 0.125, 0.1)], STAGES).step == 4
    assert repeated([steps(0.5, 0.25), steps(0.25, 0.125, first=2)]) == 1


def test_a_sample_has_its_hash_in_any_batch_and_another_one_if_a_bit_of_it_differs():
    def batch(rows, flip=False):
        images = torch.arange(24, dtype=torch.float32).reshape(4, 1, 2, 3)[rows]
        if flip:
            images[0, 0, 0, 0] = -0.0 if images[0, 0, 0, 0] == 0 else images[0, 0, 0, 0] + 2**-20
        return {"image": images, "label": torch.arange(4)[rows], "row": torch.tensor(rows), "epochs": torch.tensor(0.5)}

    together, alone = sample_hashes(batch([0, 1, 2, 3])), sample_hashes(batch([2]))
    assert len(set(together)) == 4
    assert alone == [together[2]]
    assert sample_hashes(batch([0, 1], flip=True))[0] != together[0]
    assert sample_hashes(batch([0, 1], flip=True))[1] == together[1]
