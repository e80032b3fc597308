"""Several processes (gloo) train one model: they end where an uninterrupted run ends, however they are started.

The toy plan has dropout, BatchNorm and augmentation; a resumed session has every process's own random numbers, and adds
up gradients in the same order as an uninterrupted one."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outlast.plan.launch import _free_port
from outlast.save.format import read_state
from outlast.save.store import newest

HERE = Path(__file__).parents[1]
SETTINGS = ("saving.every_steps=3", "train.ema_decay=0.9")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_cut_run_ends_bit_for_bit_as_the_whole_one(runs, ranks, count):
    whole = ranks.train(count, runs.folder / "whole")
    assert whole[0]["result"]["status"] == "finished"
    cut = ranks.train(count, runs.folder / "cut", *SETTINGS[:1], crash=("step", 6))
    assert [answer["result"] for answer in cut] == [None] * count
    again = ranks.train(count, runs.folder / "cut", *SETTINGS[:1])
    assert again[0]["result"]["stages"]["train-fold0"]["from_step"] == 3
    assert runs.results("cut") == runs.results("whole")


@pytest.mark.parametrize(("count", "part"), [(2, "generators"), (3, "warm-up")])
def test_what_makes_it_exact_is_needed(runs, ranks, count, part):
    """Without the processes' generators, or without the pass that settles the buckets, the resumed run differs."""
    for name, crash in (("whole", None), ("cut", ("step", 6)), ("cut", None)):
        ranks.train(count, runs.folder / name, *SETTINGS[:1], crash=crash, without=[part])
    whole, cut = runs.results("whole"), runs.results("cut")
    assert whole["train-fold0: step"] == cut["train-fold0: step"]
    assert whole["train-fold0: model"] != cut["train-fold0: model"]


def test_the_first_pass_that_settles_the_buckets_leaves_nothing_behind(runs, ranks):
    """With two processes the order of a sum does not matter: a run without that pass is the same to the last bit."""
    ranks.train(2, runs.folder / "with")
    ranks.train(2, runs.folder / "without", without=["warm-up"])
    assert runs.results("with") == runs.results("without")


def test_another_number_of_processes_keeps_the_samples_of_each_step_and_says_what_differs(runs, ranks):
    def together(answers):
        """The rows of each optimizer step, over all processes."""
        steps = zip(*(answer["steps"] for answer in answers), strict=True)
        return [sorted(itertools.chain(*parts)) for parts in steps]

    whole = together(ranks.train(2, runs.folder / "whole"))
    run = runs.folder / "changing"
    # The second session is stopped at the end of an epoch, whose sums the third one adds up.
    done = together(ranks.train(2, run, stop=("stepped", 3)))
    done += together(ranks.train(1, run, stop=("stepped", 1)))
    sums = [rank["sums"] for rank in read_state(newest(run / "train-fold0" / "checkpoints", []).folder).ranks]
    assert [rank["weight"] for rank in sums] == [30]  # the loss of an epoch is that of all its samples
    done += together(ranks.train(2, run, stop=("stepped", 2)))
    last = ranks.train(3, run)
    done += together(last)
    assert done == whole
    warnings = json.loads((run / "run.json").read_text())["warnings"]
    warnings = [warning for warning in warnings if " and goes on with " in warning]
    said = [warning.partition(" and goes on with ")[2] for warning in warnings]
    assert [sentence.partition(":")[0] for sentence in said] == ["one process", "2 processes", "3 processes"]
    assert all("BatchNorm" in warning and "dropout" in warning and "rounded" in warning for warning in warnings)
    assert last[0]["result"]["status"] == "finished"


def test_a_student_with_a_frozen_teacher_that_was_cut_ends_bit_for_bit_as_the_whole_one(runs, ranks):
    ranks.train(2, runs.folder / "whole", task="toys.taught")
    cut = ranks.train(2, runs.folder / "cut", *SETTINGS[:1], task="toys.taught", crash=("stepped", 23))
    assert [answer["result"] for answer in cut] == [None] * 2
    again = ranks.train(2, runs.folder / "cut", *SETTINGS[:1], task="toys.taught")
    assert again[0]["result"]["stages"]["student"]["from_step"] == 3
    assert runs.results("cut", trainings="*") == runs.results("whole", trainings="*")


def test_machines_that_do_not_share_the_run_folder_are_refused(runs, ranks):
    folders = [runs.folder / "first", runs.folder / "second"]
    answers = ranks.train(2, folders)
    for answer in answers:
        assert "is not one folder for all processes: rank 1 sees another one, or none" in answer["error"]
    assert not folders[1].exists()


def session(starter, run, *options, kill="", **environment):
    """Start a session with real processes; kill=place:count is for rank 1 alone."""
    own = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "OUTLAST_TOY_KILL": kill, **environment}
    command = [*starter, "train", "toys.plan", "--preset", "smoke", "--out", str(run), *options, *SETTINGS]
    return subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_under_one_launcher_and_resumed_under_another_it_ends_the_same(runs):
    """Whole: two machines (two agents of torchrun). Cut: --processes 2, with one rank killed. Resumed: accelerate."""
    place = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={_free_port()}"]
    agents = [
        session([*TORCHRUN, *place, f"--node-rank={node}", "-m", "outlast"], runs.folder / "whole", "--json")
        for node in range(2)
    ]
    ends = [agent.communicate(timeout=120) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], ends
    record = json.loads((runs.folder / "whole" / "run.json").read_text())
    assert (record["status"], record["host"]["processes"]) == ("finished", 2)
    assert record["command"].startswith("torchrun --nnodes=2 --nproc-per-node=1 --node-rank=0 --master-addr=127.0.0.1")

    run = runs.folder / "cut"
    outlast = [sys.executable, "-m", "outlast"]
    killed = session(outlast, run, "--processes=2", "--json", kill="step:10", OUTLAST_TOY_RANK="1")
    output, errors = killed.communicate(timeout=60)
    assert killed.returncode == 1
    assert json.loads(output)["error"] == "rank 1 of 2 was killed (SIGKILL)"
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
    record = json.loads((run / "run.json").read_text())
    assert record["next_command"].endswith("--processes 2 saving.every_steps=3 train.ema_decay=0.9")

    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    accelerate += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "-m", "outlast"]
    done = session(accelerate, run)
    _, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    assert re.search("resuming train-fold0 from step [36],", errors), errors
    assert runs.results("cut") == runs.results("whole")
    warnings = json.loads((run / "run.json").read_text())["warnings"]
    assert warnings == []


def test_a_signal_stops_all_ranks_together_and_exits_with_zero(tmp_path):
    run = tmp_path / "run"
    process = session([sys.executable, "-m", "outlast"], run, "--processes=2", "--json", "train.epochs=100000")
    heard = []
    for line in process.stderr:
        heard.append(line)
        if line.startswith("epoch 3/"):
            process.send_signal(signal.SIGTERM)
            break
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    result = json.loads(output)
    assert (result["status"], result["reason"]) == ("stopped", "SIGTERM")
    assert "--processes 2" in result["next_command"]
    assert errors.count("SIGTERM: saving and stopping") == 1
    assert list(run.glob("train-fold0/checkpoints/step-*"))


def test_of_two_processes_one_does_the_units_and_both_stop(runs, ranks):
    ranks.train(2, runs.folder / "whole", task="toys.units")
    run = runs.folder / "cut"
    stopped = ranks.train(2, run, stop=("unit", 2), task="toys.units")
    assert [answer["result"]["reason"] for answer in stopped] == ["SIGTERM", "SIGTERM"]
    assert len(list((run / "build" / "kept").iterdir())) == 2
    assert ranks.train(2, run, task="toys.units")[0]["result"]["status"] == "finished"
    assert (run / "build" / "units.json").read_text() == (runs.folder / "whole" / "build" / "units.json").read_text()
