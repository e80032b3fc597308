"""A code competition on a Kaggle of our own: one notebook trains, another submits, also for a hidden test set."""

import json

import pandas as pd

import outlast
from outlast.env import kaggle_client
from toys import bare
from toys.kaggle_server import USER
from toys.kaggle_sessions import Session
from toys.kaggle_store import Dataset, Version
from toys.lesion_set import ROWS, picture, tables, write_hdf5, write_set

COMPETITION = "isic-2024-challenge"
SETTINGS = ["sampling.negatives_per_positive=null", "train.epochs=1", "train.batch_size=16", "train.threads=1"]
HIDDEN_ROWS = 20


def kernel_folder(folder, bundle, **sources):
    """The bundle as a kernel that may be pushed, with the internet off and a competition as its input."""
    notebook = bundle.suffix == ".ipynb"
    about = {
        "id": f"{USER}/{folder.name}", "title": folder.name.replace("-", " "), "code_file": bundle.name,
        "language": "python", "kernel_type": "notebook" if notebook else "script", "is_private": True,
        "enable_gpu": False, "enable_internet": False, "competition_sources": [COMPETITION], **sources,
    }  # fmt: skip
    (folder / "kernel-metadata.json").write_text(json.dumps(about))
    return folder


def attach(store, folder):
    """What lies in a folder is what the competition consists of from now on."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    store.datasets[f"competitions/{COMPETITION}"] = Dataset("Lesions", True, [Version(files, "", 0.0)])


def hide(folder):
    """The hidden test set under the names of the visible one: other rows, and one image that can't be read."""
    _, test = tables(ROWS, HIDDEN_ROWS)
    ids = [f"HIDDEN_{number}" for number in range(HIDDEN_ROWS)]
    test.assign(isic_id=ids).to_csv(folder / "test-metadata.csv", index=False)
    pd.DataFrame({"isic_id": ids, "target": 0.3}).to_csv(folder / "sample_submission.csv", index=False)
    (folder / "test-image.hdf5").unlink()
    images = {name: picture(900 + number) for number, name in enumerate(ids)}
    write_hdf5(folder / "test-image.hdf5", images | {"HIDDEN_7": images["HIDDEN_7"][:100]})
    return ids


def session(kaggle, ended, folder):
    """Push a kernel, wait for it; its newest session, which must have ended well."""
    kaggle_client.push(folder)
    name = f"{USER}/{folder.name}"
    assert ended(name).state == "complete", kaggle_client.logs(name).text
    return kaggle.sessions.kernels[name][-1]


def submitting(folder, file, trained):
    """The folder of a kernel that submits with the output of the kernel that has trained."""
    folder.mkdir()
    bundle = folder / file
    outlast.export_bundle("lesions", bundle, submit=file.endswith("ipynb"))
    if not file.endswith("ipynb"):  # as a person edits the file that has trained
        bundle.write_text(bundle.read_text().replace('"do": "train"', '"do": "submit"', 1))
    return kernel_folder(folder, bundle, kernel_sources=[trained])


def test_a_notebook_that_only_submits_does_so_for_whatever_test_set_is_there(kaggle, ended, tmp_path):
    """First the visible test set, then, as Kaggle runs a submitted notebook again, the hidden one in its place."""
    kaggle.sessions.python = str(bare.make(tmp_path / "bare"))
    data = write_set(tmp_path / "data")
    attach(kaggle.store, data)
    run = tmp_path / "output" / "lesions-smoke"
    outlast.train("lesions", data=data, out=run, preset="smoke", overrides=SETTINGS)
    trained = f"{USER}/train-it"
    kaggle.sessions.kernels[trained] = [Session({}, 1, status="COMPLETE", output=run.parent)]

    visible = session(kaggle, ended, submitting(tmp_path / "try-it", "main.py", trained))
    own = (run / "submit" / "submission.csv").read_bytes()
    assert (visible.output / "submission.csv").read_bytes() == own
    assert "12 rows for the test set in" in visible.text() and "starting train" not in visible.text()

    ids = hide(data)
    for path in ("train-metadata.csv", "train-image"):
        (data / path).rename(tmp_path / path)  # nothing to train on is there
    attach(kaggle.store, data)
    kaggle.sessions.layout, kaggle.sessions.environment = "flat", {"KAGGLE_IS_COMPETITION_RERUN": "1"}
    hidden = session(kaggle, ended, submitting(tmp_path / "submit-it", "main.ipynb", trained))
    found = pd.read_csv(hidden.output / "submission.csv")
    assert found["isic_id"].tolist() == ids and found["target"].between(0, 1).all()
    assert list(json.loads((hidden.output / "submission.json").read_text())["filled"]) == ["HIDDEN_7"]
    assert "1 of them are predicted by the table alone" in hidden.text()
    assert sorted(path.name for path in hidden.output.iterdir()) == [
        "lesions-t4.log", "submission.csv", "submission.json",
    ]  # fmt: skip
    assert kaggle.refused == []
