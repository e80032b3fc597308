"""Made-up machines and subjects for tests of the checks: healthy ones, with what a test wants to be broken."""

from dataclasses import replace
from pathlib import Path

from outlast import task as tasks
from outlast.check.finding import run
from outlast.check.machine import Gpu, Machine
from outlast.check.subject import Subject
from outlast.config.load import resolve
from outlast.env.host import Host
from outlast.errors import ConfigError

T4 = Gpu("Tesla T4", (7, 5), 15_000_000_000)
P100 = Gpu("Tesla P100-PCIE-16GB", (6, 0), 16_000_000_000)
NOON = 1_790_000_000.0


def healthy(folder, kind="plain", **changes):
    """A machine with one T4, four cores and nothing wrong; `folder` exists."""
    machine = Machine(
        host=Host(kind, NOON - 60, Path(folder) / "scratch", 4),
        python="3.12.4",
        requires_python=">=3.11",
        requirements=("torch>=2.6", "torchvision>=0.21", "numpy>=2.0", 'pytest>=8.3; extra == "test"'),
        packages={"torch": "2.10.0", "torchvision": "0.25.0", "numpy": "2.0.2"},
        torchvision_requires=("numpy", "torch==2.10.0", 'scipy; extra == "scipy"'),
        cuda="12.8",
        architectures=("sm_70", "sm_75", "sm_80", "sm_90", "compute_90"),
        gpus=(T4,),
        gpu_files=1,
        memory_bytes=31_000_000_000,
        shared_memory_bytes=15_000_000_000,
        package=Path("/clone/src/outlast"),
        copies=(Path("/clone/src"),),
        now=NOON,
        gpu_free_bytes=lambda number: 14_500_000_000,
        free_bytes=lambda folder: 60_000_000_000,
    )
    return replace(machine, **changes)


def subject(machine, *settings, task="toys.plan", preset="smoke", **changes):
    """What training `task` with these settings on this machine would be."""
    found = tasks.find(task)
    settings = ("train.epochs=40", *settings) if task == "toys.plan" else settings
    changes = {"run": machine.host.scratch.parent / "run", **changes}
    try:
        config, no_effect = resolve(found.config, found.presets, preset, overrides=settings)
    except ConfigError as problem:
        return Subject(machine, found, None, preset, problems={"config": problem}, **changes)
    made = Subject(machine, found, config, preset, no_effect=tuple(no_effect), **changes)
    if task == "toys.plan":
        made.find_examples = lambda: {"toy": found.learners["toy"].examples(config, {})}
    return made


def found(family, name, about):
    """What one check of a family finds."""
    identifier = f"{family.__name__.rpartition('.')[2]}.{name}"
    return [finding for finding in run([family], about) if finding.id == identifier]
