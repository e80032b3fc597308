"""What a bundle does where it is run: it unpacks the package that it holds and calls its command line.

`outlast export TASK --to FILE.py` writes this file's text with CONFIG, the listings and the payloads filled in; it is
never imported. It needs the standard library alone, and no __file__: it may be run, pasted into a cell or given to
exec. The package runs in processes of its own, which import the unpacked copy whatever else is on the module path.
"""

# ruff: noqa: E402

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

# What the export fills in. FILES lists the package, a line per file: bytes, SHA-256, path.
CONFIG: "dict[str, Any]" = {}
TASK = ""
FILES = ""
PACKAGES: "list[dict[str, str]]" = []
PAYLOADS: "dict[str, str]" = {}

# [code]
import base64
import hashlib
import json
import lzma
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

KAGGLE = Path(os.environ.get("OUTLAST_KAGGLE_ROOT") or "/kaggle")
ON_KAGGLE = "KAGGLE_KERNEL_RUN_TYPE" in os.environ
MOST_LINES = 4000  # of one command; a flood of output can cost a Kaggle session what it has made


_MANIFEST = """
import pathlib, sys
from outlast.base.files import write_manifest
write_manifest(pathlib.Path(sys.argv[1]), {})
"""


class Stop(SystemExit):
    """The end of this file's work, with one sentence that says why."""


def main() -> None:
    """All steps, as `python FILE` does them. A run that was begun here was checked when it was."""
    if CONFIG["do"] == "submit":
        submit()
        return
    if CONFIG["do"] != "train":
        raise Stop(f"CONFIG says do = {CONFIG['do']!r}; it is either 'train' or 'submit'")
    if CONFIG["check"] and not (out() / "run.json").is_file():
        check()
    train()
    what_next()


def check() -> None:
    """Unpack, and look for everything that can go wrong before it costs."""
    run("check", *_words("check"))


def plan() -> Path:
    """Say in which session what is done, from a few measured steps; returns the path of the picture."""
    picture = Path(tempfile.mkdtemp(prefix="outlast-plan-")) / "plan.png"
    run("plan", *_words("plan"), "--gpus", str(CONFIG["side_by_side"]), "--to", str(picture))
    return picture


def train() -> None:
    """Train until it is finished or the session must end. A run that an attached output holds goes on from there."""
    run("train", *_words("train"))


def submit() -> None:
    """Write submission.csv for the test set that is there now, with a finished run among the inputs. Trains nothing."""
    finished = CONFIG["previous"] if CONFIG["previous"] not in ("auto", None) else _attached()
    kept = KAGGLE / "working" if ON_KAGGLE else Path()
    data = CONFIG["data"].get("data") if isinstance(CONFIG["data"], dict) else CONFIG["data"]
    words = ["--data", str(_mounted(data))] if data else []
    run("predict", str(finished), *words, "--to", str(kept / "submission.csv"), "--gaps", CONFIG["gaps"])


def figures() -> list[Path]:
    """Draw the figures of the report; returns the paths of the PNG files."""
    folder = Path(tempfile.mkdtemp(prefix="outlast-figures-"))
    run("report", str(out()), "--figures", str(folder))
    return sorted(folder.glob("*.png"))


def what_next() -> None:
    """Say how the run stands, and what to do next. On Kaggle a manifest is written, for whoever fetches the output."""
    if ON_KAGGLE:
        subprocess.run(
            [sys.executable, "-P", "-c", _MANIFEST, KAGGLE / "working"], env=_environment(unpack()), check=True
        )
    record = json.loads((out() / "run.json").read_text(encoding="utf-8"))
    if record["status"] == "finished":
        weights = out().with_name(f"{out().name}.safetensors")
        print(f"finished. The report: {out() / 'report.html'}. The weights alone, in a cell after this one:")
        print(f"  run('export', {str(out())!r}, '--to', {str(weights)!r})")
        return
    print(f"{record['status']}: {record.get('reason')}. To go on:")
    if ON_KAGGLE:
        print("  Save Version > Save & Run All, so that the output is kept; then, in the next session,")
        print("  Add Input > Notebook Output Files > this notebook, and run the same again: it finds the run there.")
    else:
        print("  run the same file again.")


def out() -> Path:
    """The run folder."""
    if CONFIG["out"]:
        folder = Path(CONFIG["out"])
    else:
        kept = KAGGLE / "working" if ON_KAGGLE else Path("runs")
        folder = kept / f"{TASK.rpartition('.')[2]}-{CONFIG['preset']}"
    return folder.with_name(f"{folder.name}-quick") if CONFIG["quick_test"] else folder


def run(*words: str) -> None:
    """`outlast WORDS` with the copy in this file. What it says appears here, and in a log file beside the run.

    A stop signal is passed on. Raises Stop if it fails.
    """
    folder = unpack()
    log = out().with_name(f"{out().name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "outlast", *words],
        env=_environment(folder) | {"OUTLAST_LAUNCHER": str(os.getpid())},  # it does not outlive this process
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # so that a signal reaches it once: through us
    )
    before = _pass_on_signals(process)
    try:
        with log.open("a", encoding="utf-8") as kept:
            print("$ outlast", *words, file=kept)
            for number, line in enumerate(process.stdout or ()):
                kept.write(line)
                kept.flush()
                if number < MOST_LINES:
                    print(line, end="", flush=True)
                elif number == MOST_LINES:
                    print(f"(what follows stands in {log} alone)", flush=True)
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if code != 0:
        raise Stop(f"outlast {words[0]} ended with exit status {code}; why stands above, and in {log}")


def unpack() -> Path:
    """The folder with the package as it is in this file, every file verified. Raises Stop if that can't be."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file may be run anywhere
        raise Stop(f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed")
    name = f"outlast-{hashlib.sha256(FILES.encode() + json.dumps(PACKAGES).encode()).hexdigest()[:16]}"
    parent = KAGGLE / "temp" if ON_KAGGLE else Path(tempfile.gettempdir()) / f"outlast-{os.getuid()}"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if parent.stat().st_uid != os.getuid():  # somebody else could change what lies there
        parent = Path(tempfile.mkdtemp(prefix="outlast-"))
    folder = parent / name
    if not _is_whole(folder):
        fresh = parent / f"{name}.{secrets.token_hex(4)}"
        for place, listing, payload in _parts():
            _write(fresh / place, listing, payload)
        if folder.exists():
            folder.rename(parent / f"{name}.{secrets.token_hex(4)}.old")
        try:
            fresh.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(fresh, ignore_errors=True)
        if not _is_whole(folder):
            raise Stop(f"{folder} does not hold what was written there; is the disk full?")
    _check_import(folder)
    return folder


def _parts() -> list[tuple[str, str, str]]:
    parts = [("outlast", FILES), *((one["name"], one["files"]) for one in PACKAGES)]
    return [(name, listing, PAYLOADS[name]) for name, listing in parts]


def _listed(listing: str) -> list[tuple[int, str, str]]:
    """(bytes, SHA-256, path) of every file, in the order of the payload."""
    rows = [line.split(maxsplit=2) for line in listing.strip().splitlines()]
    return [(int(size), digest, path) for size, digest, path in rows]


def _write(folder: Path, listing: str, payload: str) -> None:
    data = lzma.decompress(base64.b64decode("".join(payload.split())))
    position = 0
    for size, digest, path in _listed(listing):
        part = data[position : position + size]
        position += size
        if hashlib.sha256(part).hexdigest() != digest:
            raise Stop(f"{path} is not what the listing says: this file was changed or cut off; export it again")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(part)


def _is_whole(folder: Path) -> bool:
    """Whether every file is there as it is listed, and no other."""
    for place, listing, _ in _parts():
        rows = _listed(listing)
        here = folder / place
        there = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
        if {path for path in there if "__pycache__" not in path} != {path for _, _, path in rows}:
            return False
        if any(hashlib.sha256((here / path).read_bytes()).hexdigest() != digest for _, digest, path in rows):
            return False
    return True


def _environment(folder: Path) -> dict[str, str]:
    """Ours comes first on the module path, for its child processes too, and the working folder is not on it."""
    packages = [str(folder / one["name"]) for one in PACKAGES if _is_missing(one["module"])]
    before = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    path = os.pathsep.join([str(folder / "outlast"), *packages, *before])
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _is_missing(module: str) -> bool:
    """Whether this machine has no such package of its own."""
    words = [sys.executable, "-P", "-c", f"import importlib.util; print(importlib.util.find_spec({module!r}))"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == "None"


def _check_import(folder: Path) -> None:
    """Refuse to go on where something imports another copy of the package before ours is asked for."""
    words = [sys.executable, "-P", "-c", "import outlast; print(outlast.__file__)"]
    found = subprocess.run(words, env=_environment(folder), capture_output=True, text=True)
    if Path(found.stdout.strip()) != folder / "outlast" / "outlast" / "__init__.py":
        raise Stop(f"Python imports another copy of outlast: {found.stdout.strip() or found.stderr.strip()}")


def _words(command: str) -> list[str]:
    """What CONFIG says, as the command's arguments."""
    if CONFIG["task"] != TASK:
        raise Stop(
            f"this file holds the task {TASK!r}, not {CONFIG['task']!r}: outlast export {CONFIG['task']} --to FILE"
        )
    data = CONFIG["data"] or {}
    named = data.items() if isinstance(data, dict) else [("", data)]
    roots = [f"{name}={_mounted(place)}".removeprefix("=") for name, place in named]
    words = [TASK, "--preset", CONFIG["preset"], *(word for root in roots for word in ("--data", root))]
    words += ["--session-limit", CONFIG["session_limit"]] if CONFIG["session_limit"] else []
    if command != "plan":
        processes = CONFIG["processes"] or (_gpus() if CONFIG["side_by_side"] == 1 else 1)
        words += ["--out", str(out()), "--processes", str(processes or 1)]
        words += ["--quota-left", CONFIG["quota_left"]] if CONFIG["quota_left"] else []
        words += ["--side-by-side", str(CONFIG["side_by_side"])]
    if command == "train" and CONFIG["previous"] and not CONFIG["quick_test"]:
        words += ["--previous", CONFIG["previous"]]
    return [*words, *CONFIG["overrides"], *(CONFIG["quick_overrides"] if CONFIG["quick_test"] else [])]


def _mounted(place: str) -> Path:
    """Where an input lies that is named by OWNER/SLUG (a data set) or SLUG (a competition): Kaggle has two layouts."""
    slug = place.rpartition("/")[2]
    places = [f"datasets/{place}", f"competitions/{slug}", slug]
    return next((path for path in (KAGGLE / "input" / name for name in places) if path.is_dir()), Path(place))


def _attached() -> Path:
    """Where a finished run lies: the run folder if it is finished here, else somewhere among the inputs."""
    record = out() / "run.json"
    here = record.is_file() and json.loads(record.read_text(encoding="utf-8"))["status"] == "finished"
    return out() if here else KAGGLE / "input"


def _gpus() -> int:
    """GPUs of this machine."""
    return len([path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()])


def _pass_on_signals(process: "subprocess.Popen[str]") -> dict[int, Any]:
    """Until they are put back, stop signals go to the process; the handlers that there were."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before: dict[int, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, lambda received, frame: process.send_signal(received))
    return before


# [end]
