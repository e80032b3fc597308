"""What a checkpoint takes is predicted before it is written, and what there is room for is found."""

import pytest
import torch

from outlast.config.schema import Saving, Training
from outlast.loop.optim import build_average, build_optimizer
from outlast.save import rng, store
from outlast.save.space import Sizes, bytes_in, in_words, room, sizes
from outlast.state import RunState
from outlast.tasks.plants.models import build

RECORD = {"provenance": "x" * 1000}
MEGA = 10**6


@pytest.mark.parametrize(
    ("name", "optimizer", "ema_decay"),
    [("tiny", "adamw", None), ("tiny", "adamw", 0.9), ("tiny", "sgd", None), ("minimal", "adamw", 0.9),
     ("sclusterformer", "adamw", 0.9), ("sclusterformer", "sgd", None), ("resnet18", "adamw", 0.9)],
)  # fmt: skip
def test_what_is_written_is_what_was_predicted_within_two_percent(tmp_path, name, optimizer, ema_decay):
    model, config = build(name, 4), Training(optimizer=optimizer, ema_decay=ema_decay)
    predicted = sizes(model, config, processes=2)
    made, average = build_optimizer(model, config), build_average(model, ema_decay)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    made.step()
    state = RunState(
        model=model.state_dict(), optimizer=made.state_dict(), average=average.state_dict() if average else None,
        ranks=[{"generators": rng.capture(), "sums": {"loss_sum": 1.0}} for _ in range(2)],
    )  # fmt: skip
    saved = store.save(tmp_path, state, RECORD, keep=2)
    best = store.save_best(tmp_path, 1, model.state_dict(), RECORD)
    assert bytes_in(saved.folder) == pytest.approx(predicted.checkpoint, rel=0.02)
    assert bytes_in(best.folder) == pytest.approx(predicted.best, rel=0.02)


def test_parameters_that_are_not_trained_have_no_moments():
    model = build("resnet18", 4)
    trained = sizes(model, Training())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.fc.requires_grad_(True)
    frozen = sizes(model, Training())
    assert frozen.best == trained.best
    assert frozen.checkpoint < 1.01 * frozen.best + 0.1 * MEGA < 0.4 * trained.checkpoint


def test_the_worst_moment_holds_one_checkpoint_more_than_is_kept_and_two_best_weights():
    stage = Sizes(checkpoint=30, best=10)
    assert stage.at_most(Saving(keep=2)) == 3 * 30 + 2 * 10
    assert stage.when_finished(Saving(keep=2)) == 2 * 30 + 10
    assert stage.when_finished(Saving(keep=2, keep_when_finished="best")) == 10


@pytest.fixture
def disk_of(monkeypatch):
    """disk_of(free): every disk has that many bytes free."""

    def make(free):
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free})())

    return make


def test_room_is_what_the_disk_has_free_also_for_a_folder_that_is_not_there_yet(tmp_path, disk_of):
    disk_of(5 * MEGA)
    found = room(tmp_path / "runs" / "new")
    assert (found.free, found.folder, found.limit) == (5 * MEGA, tmp_path, None)


def test_all_files_in_a_limited_folder_count(tmp_path, disk_of):
    disk_of(500 * MEGA)
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "weights.bin").write_bytes(bytes(2 * MEGA))
    found = room(tmp_path / "run", (tmp_path, 5 * MEGA))
    assert (found.free, found.folder, found.limit) == (3 * MEGA, tmp_path, 5 * MEGA)
    assert room(tmp_path / "run", (tmp_path, MEGA)).free == 0
    disk_of(MEGA)
    assert room(tmp_path / "run", (tmp_path, 5 * MEGA)).free == MEGA


def test_sizes_are_said_in_powers_of_ten():
    assert [in_words(size) for size in (0, 999, 1_500, 12_345_678, 20 * 10**9, 3 * 10**12)] == [
        "0 bytes", "999 bytes", "1.5 kB", "12 MB", "20 GB", "3.0 TB",
    ]  # fmt: skip
