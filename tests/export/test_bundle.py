"""One file that trains where Outlast is not installed: the same bits, whatever else lies on the module path."""

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat
import pytest

import outlast
from outlast import task as tasks
from outlast.base.files import sha256, verify_folder
from outlast.errors import UsageError
from outlast.export import bundle_sources
from outlast.save.store import newest
from toys import bare

PACKAGE = Path(outlast.__file__).parent
SMALL = ["data.examples=24", "train.epochs=2"]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter that has everything but Outlast."""
    return bare.make(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy plan as a script."""
    target = tmp_path_factory.mktemp("toy") / "kaggle.py"
    outlast.export_bundle("toys.plan", target, preset="smoke", overrides=SMALL)
    return target


@pytest.fixture
def run(tmp_path):
    """Runs a process in an empty folder, with nothing of this one's environment that could help it."""

    def start(*words, check=True, **environment):
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "OUTLAST_CACHE") if name in os.environ}
        own = {**kept, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1", **environment}
        words = [str(word) for word in words]
        done = subprocess.run(words, cwd=_empty(tmp_path), env=own, capture_output=True, text=True, timeout=500)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return start


def _empty(folder):
    place = folder / "empty"
    place.mkdir(exist_ok=True)
    return place


def results(run):
    """What an uninterrupted run has: its best weights, its metrics, the weights of its last checkpoints."""
    patterns = ("*/best/*/model.safetensors", "*/metrics.jsonl", "predict-*/part-*", "*/metrics.json")
    found = {path.relative_to(run).as_posix(): sha256(path) for pattern in patterns for path in run.glob(pattern)}
    for stage in run.glob("*/checkpoints"):
        found[stage.parent.name] = sha256(newest(stage, []).folder / "model.safetensors")
    return found


def definitions(path):
    """What a bundle defines, without running it."""
    names = {"__name__": "bundle"}
    exec(Path(path).read_text(), names)
    return names


def with_config(path, target, **values):
    """The bundle with another CONFIG, as a person would edit it."""
    text = path.read_text()
    for name, value in values.items():
        text, count = re.subn(rf'^    "{name}": [^\[\n]*,$', f'    "{name}": {value!r},', text, count=1, flags=re.M)
        assert count == 1, name
    target.write_text(text)
    return target


def test_that_environment_has_no_outlast(python, run):
    assert "No module named 'outlast'" in run(python, "-c", "import outlast", check=False).stderr


def test_killed_and_gone_on_with_from_an_attached_output_it_ends_with_the_bits_of_the_package(
    python, toy, run, tmp_path, monkeypatch
):
    """The first session is exec'd and killed amid a training, the second run as a script in another Kaggle session."""
    first, second = tmp_path / "first", tmp_path / "second"
    kaggle = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "OUTLAST_CACHE": "", "OUTLAST_SESSION_STARTED": str(time.time())}
    often = with_config(toy, tmp_path / "often.py", session_limit="1h")
    often.write_text(often.read_text().replace('"train.epochs=2",', '"train.epochs=2", "saving.every_steps=1",', 1))
    killed = run(
        python, "-c", f"exec(open({str(often)!r}).read())", check=False,
        OUTLAST_KAGGLE_ROOT=str(first), OUTLAST_ACCIDENT="step:4", **kaggle,
    )  # fmt: skip
    assert killed.returncode != 0 and "ended with exit status -9" in killed.stderr
    left = first / "working" / "plan-smoke"
    step = newest(left / "train-fold0" / "checkpoints", []).step
    assert 0 < step < 4

    attached = second / "input" / "notebooks" / "me" / "first-try" / "plan-smoke"
    shutil.copytree(left, attached)
    for path in [*attached.rglob("*"), attached]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    done = run(python, toy, OUTLAST_KAGGLE_ROOT=str(second), **kaggle)
    ended = second / "working" / "plan-smoke"
    assert f"{ended} comes from {attached}: folds done, train-fold0 at {step}" in done.stdout
    assert len(done.stdout.splitlines()) < 150, "a flood of output"

    outlast.train("toys.plan", preset="smoke", out=tmp_path / "package", overrides=SMALL)
    assert results(ended) == results(tmp_path / "package")
    record = json.loads((ended / "run.json").read_text())
    limits = record["sessions"][-1]["limits"]
    assert (limits["session_hours"], limits["host"], limits["limit_bytes"]) == (9.0, "kaggle", 20 * 10**9)
    assert record["sessions"][0]["limits"]["session_hours"] == 1.0
    assert verify_folder(second / "working")["files"], "whoever fetches the output can't tell whether it is whole"


def test_the_notebook_runs_cell_by_cell_and_shows_its_figures(python, tmp_path, monkeypatch):
    target = tmp_path / "kaggle.ipynb"
    outlast.export_bundle("toys.one", target, preset="smoke", overrides=SMALL)
    book = nbformat.read(target, 4)
    nbformat.validate(book)
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    words = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": words, "display_name": "bare", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    nbclient.NotebookClient(
        book, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(_empty(tmp_path))}}
    ).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "0 errors" in text and "finished" in text
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) >= 2  # the plan, the curves
    outlast.train("toys.one", preset="smoke", out=tmp_path / "package", overrides=SMALL)
    assert results(tmp_path / "empty" / "runs" / "one-smoke") == results(tmp_path / "package")


def test_no_other_copy_gets_in_its_way(python, toy, run, tmp_path):
    """A clone in the working folder, one on PYTHONPATH, one that is imported already: not even children see them."""
    broken = "raise ImportError('the stale clone was imported')"
    for place in ("empty", "project/project/src"):
        (tmp_path / place / "outlast").mkdir(parents=True)
        (tmp_path / place / "outlast" / "__init__.py").write_text(broken)
    script = f"""
import subprocess, sys, types
sys.modules["outlast"] = types.ModuleType("outlast")
exec(open({str(toy)!r}).read(), names := {{"__name__": "pasted"}})
names["run"]("tasks")
child = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'outlast', 'tasks'], check=True)"
subprocess.run([sys.executable, "-c", child], env=names["_environment"](names["unpack"]()), check=True)
where = "import outlast; print(outlast.__file__)"
subprocess.run([sys.executable, "-c", where], env=names["_environment"](names["unpack"]()), check=True)
"""
    done = run(python, "-c", script, PYTHONPATH=str(tmp_path / "project" / "project" / "src"))
    assert str(tmp_path / f"outlast-{os.getuid()}") in done.stdout.splitlines()[-1]


def test_what_was_imported_before_it_is_an_error(python, toy, run, tmp_path):
    (tmp_path / "site" / "outlast").mkdir(parents=True)
    (tmp_path / "site" / "outlast" / "__init__.py").touch()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import outlast"
    )
    script = f"exec(open({str(toy)!r}).read(), names := {{'__name__': 'pasted'}}); names['unpack']()"
    done = run(python, "-c", script, check=False, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode != 0 and "Python imports another copy of outlast" in done.stderr


def test_a_changed_file_is_refused_and_a_damaged_copy_made_anew(python, toy, run, tmp_path):
    unpack = "exec(open(sys.argv[1]).read(), names := {'__name__': 'pasted'}); print(names['unpack']())"
    folder = Path(run(python, "-c", f"import sys; {unpack}", toy).stdout.strip())
    (folder / "outlast" / "outlast" / "errors.py").write_text("")
    (folder / "outlast" / "json.py").write_text("raise SystemExit('not ours')")
    assert Path(run(python, "-c", f"import sys; {unpack}", toy).stdout.strip()) == folder
    assert (folder / "outlast" / "outlast" / "errors.py").read_bytes() == (PACKAGE / "errors.py").read_bytes()
    assert not (folder / "outlast" / "json.py").exists()

    listed = hashlib.sha256((PACKAGE / "errors.py").read_bytes()).hexdigest()
    (tmp_path / "changed.py").write_text(toy.read_text().replace(listed, listed[::-1]))
    done = run(python, "-c", f"import sys; {unpack}", tmp_path / "changed.py", check=False)
    assert done.returncode != 0 and "errors.py is not what the listing says" in done.stderr


def test_a_stop_signal_reaches_the_training_and_the_run_is_kept(python, toy, tmp_path):
    longer = tmp_path / "longer.py"
    longer.write_text(toy.read_text().replace('"train.epochs=2",', '"train.epochs=10000",', 1))
    place = _empty(tmp_path)
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    script = f"exec(open({str(longer)!r}).read(), n := {{'__name__': 'pasted'}}); n['train'](); n['what_next']()"
    begun = place / "runs" / "plan-smoke" / "train-fold0" / "metrics.jsonl"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([str(python), "-c", script], cwd=place, env=environment, text=True, **pipes) as process:
        until = time.monotonic() + 300
        while not begun.exists() and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "stopped: SIGTERM. To go on:" in said
    assert newest(place / "runs" / "plan-smoke" / "train-fold0" / "checkpoints", []).step > 0


@pytest.mark.parametrize("name", [*tasks.names(), "toys.plan"])
def test_every_task_fits_into_a_megabyte_and_holds_what_it_lists(name, tmp_path):
    target = tmp_path / "kaggle.py"
    result = outlast.export_bundle(name, target, preset="smoke")
    assert result["bytes"] - result["bytes_of_packages"] <= 2**20
    found = definitions(target)
    for place, listing, payload in found["_parts"]():
        found["_write"](tmp_path / place, listing, payload)
    own = tmp_path / "outlast"
    for path in [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]:
        part = path.relative_to(PACKAGE)
        there = own / "outlast" / part
        if part.parts[0] != "tasks" or part.parts[1] in ("__init__.py", name):
            assert there.read_bytes() == path.read_bytes()
        else:
            assert not there.exists(), part
    needs = "segmentation_models_pytorch" in bundle_sources.closure(tasks.module_name(name)).outside
    assert (tmp_path / "segmentation-models-pytorch").is_dir() == needs
    assert ("segmentation-models-pytorch" in next(own.glob("*.dist-info/METADATA")).read_text()) == needs
    assert all(len(line) <= 400 for line in target.read_text().splitlines())


def test_glaciers_bring_along_what_the_image_lacks_with_its_licence(python, run, tmp_path):
    target = tmp_path / "kaggle.py"
    result = outlast.export_bundle("glaciers", target, preset="smoke")
    assert re.fullmatch(r"segmentation-models-pytorch \d\S* \(MIT\)", *result["packages"])
    script = f"""
exec(open({str(target)!r}).read(), names := {{"__name__": "pasted"}})
subprocess, sys = names["subprocess"], names["sys"]
show = "import segmentation_models_pytorch as package; print(package.__file__)"
subprocess.run([sys.executable, "-P", "-c", show], env=names["_environment"](names["unpack"]()), check=True)
"""
    assert str(tmp_path) in run(python, "-c", script).stdout
    found = definitions(target)
    assert any("LICENSE" in path for _, _, path in found["_listed"](found["PACKAGES"][0]["files"]))


def test_the_same_question_gives_the_same_bytes(toy, tmp_path):
    outlast.export_bundle("toys.plan", tmp_path / "kaggle.py", preset="smoke", overrides=SMALL)
    assert (tmp_path / "kaggle.py").read_bytes() == toy.read_bytes()


def test_of_a_task_from_elsewhere_go_along_the_modules_that_it_imports_and_nothing_else(tmp_path, monkeypatch):
    shop = tmp_path / "shop"
    files = {
        "shop/__init__.py": "", "shop/birds.py": "from . import wings\nfrom shop.deep import feather\n",
        "shop/wings.py": "def later():\n    import beside\n", "shop/deep/__init__.py": "from .feather import *\n",
        "shop/deep/feather.py": "import numpy, json\n", "beside.py": "", "shop/other.py": "", "elsewhere.py": "",
        "shop/.env": "TOKEN=1", "shop/notes.txt": "",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert shop.is_dir()
    found = bundle_sources.collect("shop.birds").files
    theirs = {name for name in found if not name.startswith("outlast")}
    assert theirs == {
        "beside.py", "shop/__init__.py", "shop/birds.py", "shop/deep/__init__.py", "shop/deep/feather.py",
        "shop/wings.py",
    }  # fmt: skip


def test_a_task_of_an_entry_point_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nest.py").write_text("")
    monkeypatch.setattr(tasks, "module_name", lambda name: "nest")
    files = bundle_sources.collect("birds").files
    (points,) = [data for name, data in files.items() if name.endswith("entry_points.txt")]
    assert points.decode() == "[outlast.tasks]\nbirds = nest\n"


@pytest.mark.parametrize("text", ["'s3cr3t-of-this-machine'", "'hf_" + "a" * 34 + "'"])
def test_a_secret_in_a_source_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-of-this-machine")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leaky").mkdir()
    (tmp_path / "leaky" / "inner.py").write_text(f"TOKEN = {text}\n")
    with pytest.raises(UsageError, match="there is a secret") as caught:
        bundle_sources.collect("leaky.inner")
    assert "leaky/inner.py" in str(caught.value) and text.strip("'") not in str(caught.value)


def test_no_token_of_this_machine_is_written(tmp_path, monkeypatch):
    tokens = {
        "KAGGLE_KEY": "0123456789abcdef",
        "HF_TOKEN": "hf-not-for-others",
        "AWS_SECRET_KEY": "aws+secret/0",
    }
    for name, value in tokens.items():
        monkeypatch.setenv(name, value)
    target = tmp_path / "kaggle.ipynb"
    outlast.export_bundle("toys.plan", target, preset="smoke")
    text = target.read_text()
    assert not [value for value in tokens.values() if value in text]
    with pytest.raises(UsageError, match="there is a secret"):
        outlast.export_bundle("toys.plan", target, preset="smoke", overrides=[f"model.name={tokens['HF_TOKEN']}"])


def test_a_run_is_exported_with_its_settings_and_nothing_of_its_place(tmp_path, run):
    outlast.train("toys.one", preset="smoke", out=tmp_path / "mine", overrides=[*SMALL, "train.learning_rate=3e-3"])
    outlast.export_bundle(tmp_path / "mine", tmp_path / "kaggle.py")
    found = definitions(tmp_path / "kaggle.py")
    assert sorted(found["CONFIG"]["overrides"]) == ["data.examples=24", "train.epochs=2", "train.learning_rate=0.003"]
    assert str(tmp_path) not in (tmp_path / "kaggle.py").read_text()
    with pytest.raises(UsageError, match="is a run, whose settings are known"):
        outlast.export_bundle(tmp_path / "mine", tmp_path / "kaggle.py", preset="smoke")


def test_what_config_says_is_what_the_command_gets(toy, tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    found = definitions(toy)
    config, words = found["CONFIG"], found["_words"]
    config |= {"data": {"pretrain": "/a", "data": "/b"}, "quota_left": "3h", "processes": 2, "previous": "/c"}
    said = " ".join(words("train"))
    for part in ("--data pretrain=/a --data data=/b", "--quota-left 3h", "--processes 2", "--previous /c", *SMALL):
        assert part in said
    assert "--previous" not in " ".join(words("check")) and "--out" not in words("plan")
    config |= {"side_by_side": 2, "processes": None}
    assert "--processes 1" in " ".join(words("train")) and "--side-by-side 2" in " ".join(words("train"))
    config["quick_test"] = True
    assert words("train")[-2:] == config["quick_overrides"]
    assert "--out runs/plan-smoke-quick" in " ".join(words("train"))
    config["task"] = "plants"
    with pytest.raises(SystemExit, match="outlast export plants"):
        words("train")


@pytest.mark.parametrize("name", tasks.names())
def test_the_quick_test_of_every_task_goes_with_every_preset(name):
    from outlast.config.load import resolve

    task = tasks.find(name)
    assert task.quick
    for preset in task.presets:
        config, _ = resolve(task.config, task.presets, preset, overrides=task.quick)
        epochs = [stage.config.train.epochs for stage in task.stages(config) if isinstance(stage, tasks.Train)]
        assert 0 < len(epochs) <= 4 and max(epochs) <= 3


def test_options_of_weights_are_refused_for_a_bundle_and_the_other_way_round(tmp_path):
    for words in (["toys.plan", "--to", "a.py", "--half"], ["toys.plan", "--to", "a.onnx", "train.epochs=2"]):
        done = subprocess.run(
            [sys.executable, "-m", "outlast", "export", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 2 and "What to do" in done.stderr


def test_the_code_of_a_bundle_imports_the_standard_library_alone(toy):
    roots = set()
    for node in ast.walk(ast.parse(toy.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.partition(".")[0])
    assert roots <= sys.stdlib_module_names
