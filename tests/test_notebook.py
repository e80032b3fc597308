"""Cells of a real notebook in a real kernel: progress, figures, report and weights inline; an interrupt saves."""

import base64
import io
import json
import os
import signal
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load

from outlast.base.listen import Listener

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

HERE = Path(__file__).parent
SLOW = "0.5"
CELLS = [
    "import os, sys, outlast\nopen('pid', 'w').write(str(os.getpid()))\nassert outlast.notebook",
    "result = outlast.notebook.train('toys.plan', preset='smoke', out='run')\nprint(result['status'])",
    "assert 'torch' not in sys.modules  # the kernel itself computes nothing",
    "outlast.notebook.train('toys.plan', preset='smoke', out='bad', overrides=['train.epoks=3'])",
    f"os.environ['OUTLAST_TOY_SLOW'] = '{SLOW}'\n"
    "result = outlast.notebook.train('toys.plan', preset='smoke', out='slow', side_by_side=2)\n"
    "print(result['status'], result['reason'])",
]


class Links(HTMLParser):
    """The attributes of all links and frames."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag in ("a", "iframe"):
            self.found.append(dict(attributes))


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """(its folder, its cells after they were executed)"""
    folder = tmp_path_factory.mktemp("notebook")
    pages = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    environment = {
        **os.environ, "PYTHONPATH": str(HERE), "OUTLAST_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "", "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }  # fmt: skip
    environment.pop("OUTLAST_TERMINAL", None)
    client = nbclient.NotebookClient(
        pages, timeout=900, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": str(folder)}}
    )
    stop = threading.Event()
    threading.Thread(target=_interrupt, args=(folder, stop), daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        client.execute(env=environment)
    stop.set()
    return folder, pages.cells


def _interrupt(folder, stop):
    """As the button does it: SIGINT to the kernel, when the slow training has passed its first epoch."""
    while not stop.is_set():
        if any(path.stat().st_size for path in folder.glob("slow/train-*/metrics.jsonl")):
            os.kill(int((folder / "pid").read_text()), signal.SIGINT)
            return
        time.sleep(0.1)


def shown(cell, kind):
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_cell_trains_and_shows_progress_figures_report_and_weights(notebook):
    folder, cells = notebook
    assert cells[0].outputs == cells[2].outputs == []
    assert printed(cells[1]) == "finished\n"
    said, *_ = shown(cells[1], "text/html")
    assert "outlast train toys.plan" in said and "epoch 3/3" in said and "finished; report: run/report.html" in said
    assert "\x1b" not in said
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in shown(cells[1], "image/png")]
    assert len(pictures) == 2 and all(picture.width > 500 for picture in pictures)
    attributes = [each for text in shown(cells[1], "text/html") for each in Links(text).found]
    (frame,) = (each["srcdoc"] for each in attributes if "srcdoc" in each)
    assert frame == (folder / "run/report.html").read_text()
    (file,) = (each["href"] for each in attributes if each.get("href", "").startswith("run/"))
    (data,) = (each["href"] for each in attributes if each.get("href", "").startswith("data:"))
    weights = base64.b64decode(data.partition("base64,")[2])
    assert weights == (folder / file).read_bytes() and "layers.5.bias" in load(weights)


def test_an_error_is_a_sentence_and_no_traceback(notebook):
    (error,) = (output for output in notebook[1][3].outputs if output.output_type == "error")
    text = "\n".join(error.traceback)
    assert text.startswith("error: the configuration is wrong: unknown key 'train.epoks'. Did you mean 'train.epochs'?")
    assert "What to do: " in text and "Traceback" not in text


def test_interrupting_a_cell_saves_and_stops(notebook):
    folder, cells = notebook
    assert printed(cells[4]) == "stopped SIGINT\n"
    known = json.loads((folder / "slow/run.json").read_text())
    assert known["status"] == "stopped" and list(folder.glob("slow/train-*/checkpoints/step-*/manifest.json"))
    *_, last = shown(cells[4], "text/html")
    assert "run this cell again to go on" in last and "--side-by-side 2" in last


def test_what_a_process_writes_is_taken_apart():
    text = "first\n\r\x1b[Kbar 1/3\r\x1b[Kbar 2/3 \u2588\r\x1b[Ksecond\nthird\n\r\x1b[Kbar 3/3".encode()
    for size in (1, 2, 7, len(text)):
        listener, said, lines = Listener(), [], set()
        for start in range(0, len(text), size):
            said += listener.feed(text[start : start + size])
            lines.add(listener.line)
        assert said == ["first", "second", "third"] and listener.line == "bar 3/3"
        assert not any("\x1b" in line for line in lines)


def test_the_progress_line_is_rewritten_and_not_more_often_than_a_notebook_bears(monkeypatch):
    from types import SimpleNamespace

    from outlast.notebook import screen

    updates, now = [], [100.0]
    handle = SimpleNamespace(update=updates.append)
    shown = SimpleNamespace(HTML=lambda text: text, display=lambda *what, **how: handle)
    monkeypatch.setattr(screen, "display", lambda: shown)
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    with screen.Screen("outlast train <task>") as one:
        for number in range(100):
            now[0] += 0.02
            one.progress(f"epoch 1/3 {number}/100")
        assert 2 <= len(updates) <= 4
        assert "epoch 1/3 99/100" not in updates[-1]
        now[0] += 1
        one.redraw()
        assert "epoch 1/3 99/100" in updates[-1] and "epoch 1/3 98/100" not in updates[-1]
        one.say("finished")
    assert "finished" in updates[-1] and "99/100" not in updates[-1] and "&lt;task&gt;" in updates[-1]


def test_without_a_notebook_it_says_what_to_call(monkeypatch):
    from outlast import notebook as cells
    from outlast.errors import UsageError

    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(UsageError, match="IPython is not installed"):
        cells.train("toys.plan", preset="smoke")
