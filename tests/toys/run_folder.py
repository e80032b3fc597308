"""Run folders that look like those of a training, made in a moment."""

import json
import os

from outlast.base.files import write_folder, write_json, write_text

RUN_ID = "0123456789abcdef"


def make_run(run, step=100, *, megabytes=0.0, seed=0):
    """A run folder as a training leaves it after `step` steps: two stages, the second one under way."""
    write_text(run / "config.yaml", "preset: smoke\n")
    write_json(run / "run.json", {"format": 1, "id": RUN_ID, "task": "toys.plan", "status": "running"})
    write_text(run / "split.csv", "id,split\na,fit\n")
    first = run / "pretrain"
    write_json(first / "progress.json", {"identity": "1"})
    _folder(first / "best" / "step-000000012", b"best of pretrain", 0.0)
    _append(first / "metrics.jsonl", {"step": 12})
    record = {"name": "pretrain", "identity": "1", "result": {"steps": 12}, "outputs": {}}
    write_json(first / "stage.json", record)
    write_json(run / "finetune" / "progress.json", {"identity": "2"})
    go_on(run, step, megabytes=megabytes, seed=seed)
    return run


def go_on(run, step, *, megabytes=0.0, seed=0):
    """The second stage comes to another step: a checkpoint, best weights, a line of metrics."""
    stage = run / "finetune"
    contents = f"{step} {seed}".encode()
    _folder(stage / "checkpoints" / f"step-{step:09d}", contents, megabytes)
    write_text(stage / "checkpoints" / "LATEST", f"step-{step:09d}\n")
    if not (stage / "best").is_dir():
        _folder(stage / "best" / f"step-{step:09d}", b"best " + contents, 0.0)
    _append(stage / "metrics.jsonl", {"step": step})


def contents(folder):
    """{relative path: bytes} of what a mirror must give back."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if not name.startswith((".tmp-", "set-aside/"))}


def _folder(target, data, megabytes):
    def fill(folder):
        (folder / "model.safetensors").write_bytes(data * 50 + os.urandom(int(megabytes * 2**20)))
        (folder / "training.pt").write_bytes(data[::-1])

    write_folder(target, fill, {"format": 1, "step": int(target.name[5:])})


def _append(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(json.dumps(value) + "\n")
