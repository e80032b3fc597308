"""How what was trained is used: network and classical baseline as calibrated, on labelled images and on unseen ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from outlast.base.files import write_json
from outlast.base.log import Progress
from outlast.data.readers import list_images, read_image
from outlast.errors import DataError, listed
from outlast.task import Judged, Member, Scenes
from outlast.tasks.forgeries import pictures, samples, views
from outlast.tasks.forgeries.baseline import classical
from outlast.tasks.forgeries.calibration import Case, scored, summary
from outlast.tasks.forgeries.config import StageConfig
from outlast.tasks.forgeries.evidence import Evidence, decided, together
from outlast.tasks.forgeries.layout import SMALLEST_SIDE
from outlast.tasks.forgeries.scores import CALIBRATE, Rules, rules_of, truth_of
from outlast.tasks.forgeries.submission import write_submission

Batch = dict[str, Tensor]


def members_together(config: StageConfig, members: Sequence[Member], batch: Batch) -> Batch:
    """What `views.seen` gives of all members."""
    return views.seen([member.module for member in members], batch, config.data.side, config.tta)


def judge(judged: Judged) -> dict[str, Any]:
    """pixel_f1, image_auc and of1 of the model that decides; those of all three models under "models"."""
    rules, chosen, matching = rules_of(judged.run / CALIBRATE)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in rules}
    cases: list[Case] = []
    rows = judged.examples.table.to_dict("records")
    with Progress("scoring images", len(rows)) as progress:
        for number, row in enumerate(rows):
            image = read_image(judged.examples.root / row["image"])
            network = network_says(judged.config, judged.members, image, judged.device)
            other = classical(image, matching)
            case = Case(network, other, truth_of(judged.examples.root, row), str(row["group"]))
            for name, rule in rules.items():
                for metric, values in scored([case], rule).items():
                    found[name].setdefault(metric, []).extend(values)
            cases.append(case.without_maps())
            progress.update(number + 1)
    models = {name: summary(cases, values) for name, values in found.items()}
    return {**models[chosen], "model": chosen, "models": models}


def scenes(asked: Scenes) -> pd.DataFrame:
    """Write submission.csv (case_id, annotation) and a picture of each image with its mask and matches.

    Returns a row for each image: its file, whether it is called forged, its score, its instances, the share of its
    pixels that are marked, its picture. Raises DataError for what can't be read, or two images of one name.
    """
    files = _images(asked.files)
    rules = rules_of(asked.run / CALIBRATE)
    rule = rules.models[rules.chosen]
    asked.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    write_submission(asked.out / "submission.csv", _decisions(asked, files, rules, rows))
    write_json(asked.out / "provenance.json", {**asked.provenance, "rule": {"model": rules.chosen, **rule.as_json()}})
    return pd.DataFrame(rows)


def _decisions(
    asked: Scenes, files: Sequence[Path], rules: Rules, rows: list[dict[str, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
    """The case_id and the instances of each image; writes its picture and adds its row on the way."""
    with Progress("predicting images", len(files)) as progress:
        for number, file in enumerate(files):
            image = large_enough(file)
            evidence, instances = judged_by(rules, asked.config, asked.members, image, asked.device)
            assert evidence.flow is not None
            mask = np.asarray(instances.any(axis=0))
            size = samples.fitted(image.shape[0], image.shape[1], asked.config.data.side)
            found = pictures.arrows(evidence.flow, mask, size)
            target = asked.out / f"{file.stem}.png"
            pictures.write_overlay(
                target, pictures.Shown(file.stem, image, mask, found, evidence.flow[2], evidence.score)
            )
            rows.append({
                "file": str(file), "forged": int(len(instances) > 0), "score": evidence.score,
                "instances": len(instances), "share": float(mask.mean()), "picture": target.name,
            })  # fmt: skip
            progress.update(number + 1)
            yield file.stem, instances


def judged_by(
    rules: Rules, config: StageConfig, members: Sequence[Member], image: np.ndarray, device: torch.device
) -> tuple[Evidence, np.ndarray]:
    """The evidence of the model that decides, and the instances (N, H, W) that it finds in an image uint8 (H, W, 3)."""
    rule = rules.models[rules.chosen]
    network = network_says(config, members, image, device)
    evidence = together(network, classical(image, rules.classical), rule.weight, rule.score_weight)
    return evidence, decided(evidence, rule)


@torch.inference_mode()
def network_says(config: StageConfig, members: Sequence[Member], image: np.ndarray, device: torch.device) -> Evidence:
    """The networks' evidence for an image uint8 (H, W, 3); the flow is that of the first one."""
    side, original = config.data.side, (image.shape[0], image.shape[1])
    canvas = samples.on_canvas(image, side)
    batch = {name: torch.from_numpy(array)[None] for name, array in canvas.items()}
    shown = {name: tensor.to(device) for name, tensor in samples.whole(batch).items()}
    outputs = {name: value[0].float().cpu().numpy() for name, value in members_together(config, members, shown).items()}
    size = samples.fitted(*original, side)
    flow, cell = samples.flow_at_original(outputs["flow"], size, original)
    return Evidence(samples.at_original(outputs["map"], size, original), float(outputs["score"]), flow, cell)


def _images(files: Sequence[Path]) -> list[Path]:
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise DataError(f"there is no such file: {listed(missing)}", hint="check the path")
    found = [file for path in files for file in (list_images(path) if path.is_dir() else [path])]
    found = list(dict.fromkeys(found))
    if not found:
        raise DataError(f"there are no images in {listed(files)}", hint="give images, or folders of them")
    names: dict[str, list[str]] = {}
    for file in found:
        names.setdefault(file.stem, []).append(str(file))
    twice = [" and ".join(same) for same in names.values() if len(same) > 1]
    if twice:
        raise DataError(
            f"{listed(twice)} have one case_id, which is the name without its ending", hint="predict them separately"
        )
    return found


def large_enough(file: Path) -> np.ndarray:
    """The image, uint8 (H, W, 3). Raises DataError if it can't be read or is smaller than a patch."""
    image = read_image(file)
    if min(image.shape[:2]) < SMALLEST_SIDE:
        raise DataError(
            f"{file}: {image.shape[0]} x {image.shape[1]} pixels, smaller than a patch of {SMALLEST_SIDE}",
            hint="leave it out, or enlarge it",
        )
    return image


def sidecar(config: StageConfig, facts: Mapping[str, Any], rung: str) -> dict[str, Any]:
    """What the bare weights need: what goes in, and what comes out."""
    side = config.data.side
    return {
        "model": {"name": rung, "settings": config.model.model_dump(mode="json")},
        "input": {
            "images": {"layout": "NCHW float32, RGB, 0 to 255", "shape": ["batch", 3, side, side]},
            "valid": {"layout": "NHW float32, 1 where there is an image, 0 on padding", "shape": ["batch", side, side]},
            "steps": [
                f"scale down to a longer side of at most {side} (bilinear with antialias), never up",
                f"pad with 0 below and to the right to {side}x{side} (the bare weights take any size)",
            ],
        },
        "output": {
            "logits": "(N, H, W); the sigmoid is the probability that a pixel was copied, or is where a copy lies",
            "score": "(N,); the sigmoid is the probability that there is such a pixel",
            "flow": "(N, 3, H/4, W/4); dy and dx in pixels to what every fourth pixel resembles, and how many of its "
            "neighbours agree",
        },
    }
