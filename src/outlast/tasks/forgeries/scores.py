"""What is done with the network's maps: the classical baseline beside them, a rule for each model, and their scores.

Three stages. `match`: what the classical baseline finds in the images of val and test. `calibrate`: the rules, chosen
on val. `score`: metrics of the three models on test by those rules, with intervals of whole groups drawn anew.
Promises: test images have no part in any choice; the models are scored on the same images and the same draws.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from outlast.base.files import read_json, write_bytes, write_json
from outlast.base.log import Progress, say
from outlast.data.readers import read_image
from outlast.data.shards import read_shards
from outlast.data.table import Examples
from outlast.errors import DataError, RunError
from outlast.model.bootstrap import draw_groups, interval
from outlast.task import Work
from outlast.tasks.forgeries import pictures, samples
from outlast.tasks.forgeries.baseline import classical
from outlast.tasks.forgeries.calibration import WEIGHTS, Case, calibrate, scored, summary, tabulate, told_apart
from outlast.tasks.forgeries.classical import ClassicalSettings
from outlast.tasks.forgeries.evidence import Evidence, Rule, regions, together
from outlast.tasks.forgeries.judge import image_auc
from outlast.tasks.forgeries.truth import read_masks

NETWORK, MAPS, CLASSICAL, CALIBRATE, SCORES = "network", "maps", "classical", "calibrate", "scores"
CALIBRATION = "calibration.json"
_EXAMPLES = 6


def match(work: Work) -> Mapping[str, Any]:
    """Write what the classical baseline finds in each image of val and test: classical.npz, scores.json.

    Image by image: a session that ends in between costs the image that was being searched.
    """
    examples = _examples(work)
    rows = examples.table[examples.table["split"].isin(("val", "test"))].to_dict("records")
    maps: dict[str, np.ndarray] = {}
    scores: dict[str, float] = {}
    with Progress("matching images with themselves", len(rows)) as progress:
        for number, row in enumerate(rows):
            unit = work.kept / f"{number:06d}.npz"
            if not unit.is_file():
                _match_one(examples.root / row["image"], work.config.classical, unit)
                work.pause()
            with np.load(unit, allow_pickle=False) as found:
                maps[f"map/{row['id']}"], scores[row["id"]] = found["map"], float(found["score"])
            progress.update(number + 1)
    write_bytes(work.out / "classical.npz", _npz(maps))
    write_json(work.out / "scores.json", scores)
    return {"images": len(rows)}


def _match_one(image: Path, settings: ClassicalSettings, unit: Path) -> None:
    found = classical(read_image(image), settings)
    write_bytes(unit, _npz({"map": (found.map * 255 + 0.5).astype(np.uint8), "score": np.array(found.score)}))


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def calibrate_models(work: Work) -> Mapping[str, Any]:
    """Write the rule of each model, chosen on val, and what it is worth: calibration.json."""
    decision = work.config.decision
    table = tabulate((case for case, _ in _cases(work, "val")), decision.minimum_area)
    chosen = {name: calibrate(table, name, decision.folds) for name in WEIGHTS}
    rules = told_apart(
        (case for case, _ in _cases(work, "val")), {name: (rule, worth) for name, (rule, worth, _) in chosen.items()}
    )
    models = {
        name: {**rules[name].as_json(), "of1": chosen[name][1], "held_out_of1": chosen[name][2]} for name in rules
    }
    write_json(work.out / CALIBRATION, {
        "model": decision.model, "images": len(table.forged), "models": models,
        "classical": work.config.classical.model_dump(mode="json"),
    })  # fmt: skip
    told = models[decision.model]["held_out_of1"]
    worth = "not judged: one group" if told is None else f"oF1 {told:.3f} on held-out groups"
    say(f"{decision.model} decides, {worth}")
    return {"model": decision.model, **models[decision.model]}


def score(work: Work) -> Mapping[str, Any]:
    """Write metrics.json and models.json of the test images, and pictures of some of them."""
    rules, chosen, _ = rules_of(work.inputs[CALIBRATE])
    by_model: dict[str, dict[str, list[float]]] = {name: {} for name in rules}
    cases: list[Case] = []
    shares: list[float] = []
    for case, _ in _cases(work, "test"):
        for name, rule in rules.items():
            for metric, values in scored([case], rule).items():
                by_model[name].setdefault(metric, []).extend(values)
        shares.append(float(case.truth.any(axis=0).mean()))
        cases.append(case.without_maps())
    if not cases:
        raise DataError("the test split holds no image", hint="give more scenes, so that each split gets some")
    metrics = {name: summary(cases, values) for name, values in by_model.items()}
    groups = [case.group for case in cases]
    intervals = {name: _intervals(cases, values, groups) for name, values in by_model.items()}
    models = {name: {**metrics[name], "intervals": intervals[name]} for name in rules} | _trivial(cases, shares)
    columns = ("pixel_f1", "image_auc", "of1")
    write_json(work.out / "models.json", {
        "split": "test", "images": len(cases), "classes": list(models), "groups": len(set(groups)), "models": models,
        "metrics": {"per_class": {name: {column: models[name][column] for column in columns} for name in models}},
    })  # fmt: skip
    write_json(work.out / "metrics.json", {
        "split": "test", "images": len(cases), "metrics": metrics[chosen], "model": chosen, "synthetic": work.synthetic,
        "intervals": intervals[chosen],
    })  # fmt: skip
    _draw(work, cases, rules[chosen])
    return {"model": chosen, **metrics[chosen]}


class Rules(NamedTuple):
    """The rule of each model, which of them decides, and the settings of the classical baseline."""

    models: dict[str, Rule]
    chosen: str
    classical: ClassicalSettings


def rules_of(folder: Path) -> Rules:
    """What the stage `calibrate` wrote into its folder. Raises RunError."""
    path = folder / CALIBRATION
    if not path.is_file():
        raise RunError(
            f"{path} is not there: it was not yet chosen how maps are decided",
            hint="let the run finish (the same train command goes on), or score the network alone with --stage network",
        )
    known = read_json(path)
    fields = tuple(Rule.__dataclass_fields__)
    models = {name: Rule(**{key: one[key] for key in fields}) for name, one in known["models"].items()}
    return Rules(models, known["model"], ClassicalSettings.model_validate(known["classical"]))


def _examples(work: Work) -> Examples:
    assert work.examples is not None
    return work.examples


def _cases(work: Work, split: str) -> Iterator[tuple[Case, dict[str, Any]]]:
    """The images of a split with what both models say; and the row, with the size on the canvas under "size"."""
    examples, side = _examples(work), work.config.data.side
    ids, arrays = read_shards(work.inputs[MAPS])
    place = {name: number for number, name in enumerate(ids)}
    scores = read_json(work.inputs[CLASSICAL] / "scores.json")
    with np.load(work.inputs[CLASSICAL] / "classical.npz") as maps:
        for row in examples.table[examples.table["split"] == split].to_dict("records"):
            number, original = place[row["id"]], (row["height"], row["width"])
            size = samples.fitted(*original, side)
            network = Evidence(
                samples.at_original(arrays["map"][number], size, original), float(arrays["score"][number]),
                *samples.flow_at_original(arrays["flow"][number], size, original),
            )  # fmt: skip
            other = Evidence(maps[f"map/{row['id']}"].astype(np.float32) / 255, float(scores[row["id"]]))
            case = Case(network, other, truth_of(examples.root, row), str(row["group"]))
            yield case, {**_named(row), "flow": arrays["flow"][number], "size": size}


def truth_of(root: Path, row: Mapping[Any, Any]) -> np.ndarray:
    """The instances (N, H, W) of a row; none if it is authentic."""
    original = int(row["height"]), int(row["width"])
    return read_masks(root / str(row["mask"]), *original) if row["mask"] else np.zeros((0, *original), np.uint8)


def _intervals(cases: Sequence[Case], found: Mapping[str, list[float]], groups: Sequence[str]) -> dict[str, Any]:
    """95 % of draws of whole groups of each metric; None where it is not defined often enough."""
    draws = draw_groups(groups)
    forged = np.array([case.forged for case in cases])
    columns = {name: np.array(values) for name, values in found.items()}
    drawn: dict[str, list[float]] = {"pixel_f1": [], "image_auc": [], "of1": []}
    for counts in draws.counts:
        rows = np.repeat(np.arange(len(cases)), counts[draws.of_sample])
        f1 = columns["pixel_f1"][rows]
        known = f1[~np.isnan(f1)]
        drawn["pixel_f1"].append(float(known.mean()) if len(known) else float("nan"))
        drawn["image_auc"].append(image_auc(columns["score"][rows], forged[rows]))
        drawn["of1"].append(float(columns["of1"][rows].mean()))
    return {name: interval(np.array(values)) for name, values in drawn.items()}


def _trivial(cases: Sequence[Case], shares: Sequence[float]) -> dict[str, dict[str, float | None]]:
    """What marking every pixel, and marking none, is worth; shares: of the pixels of each image that are marked."""
    everything = [2 * share / (1 + share) for share in shares]
    forged = [case.forged for case in cases]
    alike = 0.5 if 0 < sum(forged) < len(forged) else None
    marked = [value for value, one in zip(everything, forged, strict=True) if one]
    one_instance = [value / max(len(case.truth), 1) for value, case in zip(everything, cases, strict=True)]
    return {
        "mark everything": {
            "pixel_f1": float(np.mean(marked)) if marked else None, "image_auc": alike,
            "of1": float(np.mean(one_instance)),
        },
        "mark nothing": {
            "pixel_f1": 0.0 if marked else None, "image_auc": alike, "of1": 1 - sum(forged) / len(forged),
        },
    }  # fmt: skip


def _draw(work: Work, cases: Sequence[Case], rule: Rule) -> None:
    """Some forged test images and one or two authentic ones, spread over all."""
    forged = [number for number, case in enumerate(cases) if case.forged]
    authentic = [number for number, case in enumerate(cases) if not case.forged]
    chosen = {*_some(forged, _EXAMPLES - min(len(authentic), 2)), *_some(authentic, 2)}
    shown = []
    for number, (case, row) in enumerate(_cases(work, "test")):
        if number not in chosen:
            continue
        evidence = together(case.network, case.classical, rule.weight)
        mask = regions(evidence, rule.threshold, rule.minimum_area)
        flow = case.network.flow
        assert flow is not None
        image = read_image(_examples(work).root / row["image"])
        truth = case.truth.any(axis=0) if case.forged else None
        arrows = pictures.arrows(flow, mask, row["size"])
        shown.append(pictures.Shown(str(row["id"]), image, mask, arrows, flow[2], evidence.score, truth))
    pictures.write_examples(work.out / "examples.png", sorted(shown, key=lambda one: one.truth is None))


def _some(items: Sequence[Any], count: int) -> list[Any]:
    return [items[int(place)] for place in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round())]


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}
