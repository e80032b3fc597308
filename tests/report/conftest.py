"""Small fake runs, written as the machinery writes them, for the tests of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = ("early blight", "healthy", "late blight")
SESSIONS = (
    ("2026-03-01T09:00:00+00:00", "2026-03-01T09:04:10+00:00", 0, 120, None, "session limit", 250.0),
    ("2026-03-01T23:00:00+00:00", "2026-03-01T23:03:30+00:00", 120, 270, "step-000000120", "SIGTERM", 210.0),
    ("2026-03-03T08:00:00+00:00", "2026-03-03T08:03:05+00:00", 250, 400, "step-000000250", "finished", 185.0),
)
COUNTS = ((44, 1, 1), (0, 46, 0), (2, 0, 44))


def record(**changes: Any) -> dict[str, Any]:
    """A run.json."""
    keys = ("started", "ended", "from_step", "to_step", "resumed_from", "why_stopped", "seconds")
    plain: dict[str, Any] = {
        "format": 1,
        "task": "plants",
        "preset": "cpu",
        "status": "finished",
        "reason": "all 40 epochs done",
        "next_command": None,
        "outlast": "0.1.0",
        "created": "2026-03-01T09:00:00+00:00",
        "config_hash": "9c1f0a7be2d94411",
        "data": {
            "data": {
                "path": "/data/plants/potato",
                "fingerprint": "4be8d1c05a77f3e2",
                "synthetic": False,
                "examples": 920,
                "notes": ["4 images have the same pixels as another of their class"],
            }
        },
        "synthetic": False,
        "split_hash": "77aa01b2c3d4e5f6",
        "rung": {"train": {"name": "sclusterformer", "wanted": "sclusterformer", "reason": None}},
        "parameters": {"train": 131072},
        "versions": {
            "outlast": "0.1.0",
            "python": "3.11.7",
            "torch": "2.9.1",
            "torchvision": "0.24.1",
            "numpy": "2.3.4",
        },
        "host": {"kind": "plain", "device": "cpu", "device_name": "AMD EPYC 7B13", "cores": 2},
        "command": "outlast train plants --data /data/plants/potato --preset cpu --out runs/potato",
        "seconds": {"train": 645.0, "pause": 169_000.0},
        "score": {"train": "+balanced_accuracy"},
        "sessions": [{**dict(zip(keys, one, strict=True)), "device": "cpu"} for one in SESSIONS],
        "warnings": [],
        "facts": {"train": {"classes": list(CLASSES)}},
    }
    return {**plain, **changes}


def rows(steps: int = 400, every: int = 10) -> list[dict[str, Any]]:
    """The evaluations of a training that goes well."""
    noise = np.random.default_rng(7)
    found = []
    for step in range(every, steps + 1, every):
        done = step / 400
        found.append(
            {
                "step": step,
                "epoch": step // 10,
                "seconds": step * 1.6,
                "learning_rate": 1e-3 * min(1.0, step / 40) * (0.5 + 0.5 * math.cos(math.pi * done)),
                "train_loss": 0.08 + 1.05 * math.exp(-4.2 * done) + noise.normal(0, 0.012),
                "val_loss": 0.17 + 0.92 * math.exp(-4.6 * done) + 0.05 * done**2 + noise.normal(0, 0.02),
                "val_accuracy": 0.96 - 0.55 * math.exp(-5 * done),
                "val_balanced_accuracy": 0.965 - 0.6 * math.exp(-5.5 * done) + noise.normal(0, 0.008),
                "val_kappa": None,
            }
        )
    return found


def scores(classes: Sequence[str] = CLASSES, counts: Sequence[Sequence[int]] = COUNTS) -> dict[str, Any]:
    """A metrics.json of the test split."""
    table = np.asarray(counts)
    right, true, said = np.diag(table), table.sum(1), table.sum(0)
    per_class = {}
    for place, name in enumerate(classes):
        recall = right[place] / true[place] if true[place] else math.nan
        precision = right[place] / said[place] if said[place] else math.nan
        f1 = 2 * right[place] / (true[place] + said[place]) if true[place] else math.nan
        values = {"precision": precision, "recall": recall, "f1": f1, "images": int(true[place])}
        per_class[name] = {key: value if isinstance(value, int) else float(value) for key, value in values.items()}
    recalls = [row["recall"] for row in per_class.values() if not math.isnan(row["recall"])]
    metrics = {
        "accuracy": float(right.sum() / table.sum()),
        "balanced_accuracy": float(np.mean(recalls)),
        "kappa": 0.957,
        "macro_f1": 0.971,
        "loss": 0.1123,
        "per_class": per_class,
    }
    confusion = [[int(cell) for cell in row] for row in table]
    return {
        "split": "test",
        "images": int(table.sum()),
        "metrics": metrics,
        "classes": [*classes],
        "confusion": confusion,
    }


def picture(path: Path, seed: int) -> None:
    """A leaf-like picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    leaf = (x / 0.55) ** 2 + (y / 0.85) ** 2 < 1
    pixels = np.full((64, 64, 3), 226.0)
    pixels[leaf] = np.array([70, 130, 60]) + noise.normal(0, 8, (int(leaf.sum()), 3))
    for _ in range(int(noise.integers(2, 6))):
        centre = noise.uniform(-0.5, 0.5, 2)
        spot = ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 < noise.uniform(0.01, 0.05)) & leaf
        pixels[spot] = (110, 80, 40)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_json(path: Path, value: object) -> None:
    """As the machinery does (NaN included)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make(run: Path, classes: Sequence[str] = CLASSES, **changes: Any) -> Path:
    """A whole finished run."""
    run.mkdir(parents=True)
    write_json(run / "run.json", record(**changes))
    (run / "config.yaml").write_text("model:\n  name: sclusterformer\n  size: 64\ntraining:\n  epochs: 40\n")
    lines = ["id,label,group,split,hash"]
    for place in range(460):
        label = classes[place % len(classes)].replace('"', '""')
        split = ("train", "train", "train", "val", "test")[place // 3 % 5]
        lines.append(
            f'"{label}/{place}.jpg","{label}",leaf-{place // 15}-{place % 3}-{place // 3 % 5},{split},{place:08x}'
        )
    (run / "split.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = rows()
    (run / "train").mkdir()
    (run / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    best = max(found, key=lambda row: row["val_balanced_accuracy"])
    result = {
        "score": "+balanced_accuracy",
        "best_score": best["val_balanced_accuracy"],
        "best_step": best["step"],
        "best_epoch": best["epoch"],
        "steps": 400,
        "epochs": 40,
    }
    stage = {"name": "train", "kind": "train", "identity": "ab12", "seconds": 640.0, "outputs": {}, "result": result}
    write_json(run / "train" / "stage.json", stage)
    write_json(run / "scores" / "stage.json", {"name": "scores", "kind": "call", "seconds": 2.1, "result": {}})
    counts = COUNTS if len(classes) == 3 else np.diag(np.full(len(classes), 9)) + np.eye(len(classes), k=1, dtype=int)
    write_json(run / "scores" / "metrics.json", scores(classes, counts))
    mistakes = []
    for place in range(4):
        thumbnail = f"scores/mistakes/{place:04d}.png"
        picture(run / thumbnail, place)
        truth, predicted = classes[0], classes[(place % 2 + 1) % len(classes)]
        mistakes.append(
            {
                "id": f"{truth}/IMG_{place:04d}.jpg",
                "truth": truth,
                "predicted": predicted,
                "probability": 0.97 - 0.08 * place,
                "truth_probability": 0.02 + 0.03 * place,
                "thumbnail": thumbnail,
            }
        )
    write_json(run / "scores" / "mistakes.json", {"mistakes": mistakes})
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run("name", **changes of run.json) -> the folder of a whole finished run."""

    def made(name: str = "potato", **changes: Any) -> Path:
        return make(tmp_path / name, **changes)

    return made
