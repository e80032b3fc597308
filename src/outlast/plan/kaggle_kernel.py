"""A session of a training as a kernel that Kaggle can be given: a folder with one code file and its metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outlast.base.files import write_json, write_text
from outlast.config.identity import digest
from outlast.errors import UsageError

CODE = "kaggle.py"
NO_ACCELERATOR = "none"
GPUS = {"NvidiaTeslaT4": 2}  # of the accelerators whose number is known
_OWN = re.compile(r"[\w-]+/[\w-]+")
_SLUG = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class Inputs:
    """What is attached: data sets (OWNER/SLUG), competitions (SLUG); roots: {name of a data root: which of them}."""

    datasets: tuple[str, ...] = ()
    competitions: tuple[str, ...] = ()
    roots: dict[str, str] = field(default_factory=dict)


def inputs(data: Sequence[str], names: Sequence[str]) -> Inputs:
    """What --data says: [NAME=]OWNER/SLUG is a data set, [NAME=]SLUG a competition. Raises UsageError."""
    datasets, competitions, roots = [], [], {}
    for item in data:
        name, equals, source = item.rpartition("=")
        if equals and name not in names:
            raise UsageError(f"there is no data called {name!r}", hint=f"the names are: {', '.join(names)}")
        if _OWN.fullmatch(source):
            datasets.append(source)
        elif _SLUG.fullmatch(source):
            competitions.append(source)
        else:
            raise UsageError(
                f"--data {source} is nothing that Kaggle could attach",
                hint="give OWNER/SLUG for a data set, SLUG for a competition: the end of its address",
            )
        if equals:
            roots[name] = source
    return Inputs(tuple(dict.fromkeys(datasets)), tuple(dict.fromkeys(competitions)), roots)


def write(
    folder: Path,
    bundle: str,
    kernel: str,
    attached: Inputs,
    source: str | None,
    accelerator: str,
    settings: Mapping[str, str | int | None],
) -> None:
    """Write the folder: the bundle with these settings in its CONFIG, and kernel-metadata.json.

    source: the kernel whose output it goes on with. Private, and without the internet, in so many words.
    """
    text = bundle
    for name, value in settings.items():
        text = _filled_in(text, name, value)
    if source is not None:  # the first session was checked
        text = _filled_in(text, "check", False)
    slug = kernel.partition("/")[2]
    gpu = accelerator != NO_ACCELERATOR
    metadata = {
        "id": kernel,
        "title": slug.replace("-", " "),
        "code_file": CODE,
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
        "enable_gpu": gpu,
        "enable_tpu": False,
        "enable_internet": False,
        **({"machine_shape": accelerator} if gpu else {}),
        "dataset_sources": list(attached.datasets),
        "competition_sources": list(attached.competitions),
        "kernel_sources": [source] if source else [],
        "model_sources": [],
    }
    write_text(folder / CODE, text)
    write_json(folder / "kernel-metadata.json", metadata)


def _filled_in(bundle: str, name: str, value: str | int | None) -> str:
    """The bundle with another value in its CONFIG."""
    literal = f'"{value}"' if isinstance(value, str) else str(value)
    text, count = re.subn(rf'^    "{name}": .*,$', f'    "{name}": {literal},', bundle, count=1, flags=re.MULTILINE)
    if count != 1:
        raise RuntimeError(f"the bundle's CONFIG has no {name} to fill in")
    return text


def slugs(task: str, preset: str, asked: object) -> tuple[str, str]:
    """The names of the two kernels that take turns: one runs while the other's output is what it goes on with.

    asked: what tells one training from another of the same task and preset.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", f"outlast {task} {preset} {digest(asked)[:6]}".lower()).strip("-")
    return f"{stem}-a", f"{stem}-b"
