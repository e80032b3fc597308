"""A submission that stands alone: solution.zip with `maskgeration(imagepath, out_dir)` and the weights.

In the zip: solution.py (the text of solution_template.py, filled in), solution_parts/ (each network as the operators of
PyTorch that it calls, the tiling of outlast.model.mosaic, and what `prepare` needs) and solution_weights/. It runs with
torch, numpy and rasterio alone, on torch 2.6 or newer. The same networks and settings give the same bytes.
"""

from __future__ import annotations

import ast
import inspect
import io
import pprint
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from outlast import errors
from outlast.base import files
from outlast.errors import ConfigError, ModelError, UsageError, listed
from outlast.export.program import Program, capture
from outlast.model import mosaic

LIMIT_BYTES = 300_000_000  # of the weights, by the rules of the hackathon
CLASSES = 4  # background, clean ice, debris-covered ice, lake: the masks have a value for each
_AVAILABLE = {*sys.stdlib_module_names, "torch", "numpy", "rasterio"}
_DATE = (1980, 1, 1, 0, 0, 0)  # of every file in the zip: its bytes must not depend on when it was written
_IMPORT = re.compile(r"^(\s*)from (?:outlast(?:\.\w+)*\.|(?=pydantic))(\w+) import ", re.MULTILINE)
# What stands in for the settings that a prepared channel is configured by: they were checked when the run was made.
_STAND_INS = {
    "schema": '''"""Settings without their checks: a value as it was given, or the default of the class."""


class Settings:
    def __init__(self, **values):
        self.__dict__.update(values)
''',
    "pydantic": '''"""Stands in for pydantic, of which only the default of a field matters here."""


def Field(default, **_):
    return default
''',
}


@dataclass(frozen=True)
class Prepare:
    """A function that adds channels to the raw bands: function(bands (C, H, W), **options) -> (C + adds, H, W).

    sources: the text of each module that it needs, by the module's plain name; `module` names the one it stands in.
    They may import the standard library, torch, numpy, rasterio, outlast.errors, outlast.model.mosaic and each other
    (`from outlast.data.texture import ...` where "texture" is one of them); a class of Settings takes values by name
    and has its defaults, without checks. options are literals: numbers, strings, None, and tuples, lists and
    dictionaries of them. adds: how many channels more than it was given, which may be less than none.
    """

    module: str
    function: str
    adds: int
    sources: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


def check_target(to: Path) -> None:
    """Refuse what can't be written. Raises UsageError."""
    if to.suffix != ".zip":
        raise UsageError(f"{to.name!r}: a solution is a .zip file", hint="give --to a file name that ends in .zip")
    files.check_target(to)


def export_solution(
    networks: Sequence[nn.Module],
    to: Path,
    *,
    channels: Sequence[str],
    tile: int,
    overlap: int,
    tta: Sequence[str] = ("identity",),
    sidecar: Mapping[str, Any],
    half: bool = False,
    fills: Sequence[float | None] | None = None,
    prepare: Prepare | None = None,
    batch: int = 8,
    budget_bytes: int = 2**30,
) -> Path:
    """Write a solution.zip that averages the networks, at once or not at all; returns its path.

    networks: modules as deployed, raw bands (B, C, tile, tile) with NaN to logits (B, 4, tile, tile), or a mapping with
    "logits". channels: the folders of the bands in the networks' order ("Band1", ...). tta: kinds of
    outlast.model.mosaic. sidecar: the provenance, which stands at the top of solution.py. half: large weights are kept
    in float16 (all computing is in float32). fills: for each channel a value that means "nothing observed" besides the
    file's own nodata. tile, overlap, batch and budget_bytes: see `predict_scene`.
    Raises UsageError, ConfigError, and ModelError for a network that can't be exported or weights above LIMIT_BYTES.
    """
    check_target(to)
    settings = _settings(channels, tile, overlap, tta, fills, prepare, batch, budget_bytes)
    adds = prepare.adds if prepare else 0
    programs = [capture(network, len(channels) + adds, CLASSES, tile) for network in networks]
    weights = {f"{number}.pth": _stored(program, half) for number, program in enumerate(programs)}
    _check_size(weights, half)
    sources = {program.source: "" for program in programs}  # folds of one architecture share their source
    sources = {source: f"network_{number}" for number, source in enumerate(sources)}
    settings["networks"] = [
        {"source": sources[program.source], "weights": name} for program, name in zip(programs, weights, strict=True)
    ]
    parts = {
        "errors": inspect.getsource(errors),
        "mosaic": inspect.getsource(mosaic),
        **({**_STAND_INS, **prepare.sources} if prepare else {}),
        **{name: source for source, name in sources.items()},
    }
    contents = {
        "solution.py": _filled_in(files.plain(dict(sidecar)), settings).encode(),
        "solution_parts/__init__.py": b"",
        **{f"solution_parts/{name}.py": _standalone(name, text, parts).encode() for name, text in parts.items()},
        **{f"solution_weights/{name}": data for name, data in weights.items()},
    }
    files.write_bytes(to, _zipped(contents))
    return to


def _settings(
    channels: Sequence[str],
    tile: int,
    overlap: int,
    tta: Sequence[str],
    fills: Sequence[float | None] | None,
    prepare: Prepare | None,
    batch: int,
    budget_bytes: int,
) -> dict[str, Any]:
    """What solution.py goes by. What would fail there fails here."""
    fills = [None] * len(channels) if fills is None else list(fills)
    if not channels or len(set(channels)) != len(channels) or len(fills) != len(channels):
        raise ConfigError(
            f"channels {listed(channels) or '(none)'} with {len(fills)} fill values",
            hint="name each band's folder once, and give one fill value (or None) for each",
        )
    cut = {"tile": tile, "overlap": overlap, "batch": batch, "budget_bytes": budget_bytes}
    inputs = len(channels) + (prepare.adds if prepare else 0)
    mosaic.tta(lambda images: images, tta)
    mosaic.check_tiles(tile, tile, tile, overlap, batch)
    mosaic.fit(tile, inputs, classes=CLASSES, tile=tile, batch=batch, budget_bytes=budget_bytes)
    hook = None
    if prepare:
        hook = {"module": prepare.module, "function": prepare.function, "options": dict(prepare.options)}
    return {"channels": list(channels), "fills": fills, "prepare": hook, "tta": list(tta), "mosaic": cut}


def _stored(program: Program, half: bool) -> bytes:
    tensors = program.halved() if half else program.tensors
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, buffer)
    return buffer.getvalue()


def _check_size(weights: Mapping[str, bytes], half: bool) -> None:
    total = sum(len(data) for data in weights.values())
    if total <= LIMIT_BYTES:
        return
    remedy = "leave out networks or take smaller ones"
    raise ModelError(
        f"the weights of {len(weights)} networks take {total / 1e6:.1f} MB, the limit is {LIMIT_BYTES / 1e6:g} MB",
        hint=remedy if half else f"keep them in float16 (half), or {remedy}",
    )


def _filled_in(provenance: Any, settings: Mapping[str, Any]) -> str:
    text = resources.files(__package__).joinpath("solution_template.py").read_text(encoding="utf-8")
    for name, value in (("PROVENANCE", provenance), ("SETTINGS", settings)):
        empty = f"{name}: dict[str, Any] = {{}}\n"
        literal = pprint.pformat(value, width=110, sort_dicts=False)
        if text.count(empty) != 1:
            raise RuntimeError(f"solution_template.py has no line {empty!r} to fill in")
        text = text.replace(empty, f"{name}: dict[str, Any] = {literal}\n")
    return text


def _standalone(name: str, text: str, parts: Mapping[str, str]) -> str:
    """The module's text, importing other parts from beside it. Raises ModelError for an import of anything else."""
    changed = _IMPORT.sub(lambda found: f"{found[1]}from .{found[2]} import " if found[2] in parts else found[0], text)
    roots = set()
    for node in ast.walk(ast.parse(changed)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots.add(str(node.module).partition(".")[0])
    if foreign := sorted(roots - _AVAILABLE):
        raise ModelError(
            f"{name}.py can't go into a solution: it imports {listed(foreign)}",
            hint="a solution has only the standard library, torch, numpy, rasterio and its own parts",
        )
    return changed


def _zipped(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_STORED if name.endswith(".pth") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return buffer.getvalue()
