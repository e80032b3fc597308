import os
import pickle
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from outlast.data.augment import Augmentation, apply, draw
from outlast.data.loader import BatchPlan, Loader, one_thread
from outlast.data.sampler import equal_batches, occurrence_keys
from outlast.errors import DataError

COUNT = 60
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 20, 20, 3), dtype=np.uint8)
SPEC = Augmentation(rotation_degrees=15, hue=0.05, erase=0.3)
COLUMNS = {"label": np.arange(COUNT) % 3}


def get(rows: np.ndarray) -> dict[str, Any]:
    return {"image": IMAGES.take(rows, axis=0)}


def get_but_some_are_damaged(rows: np.ndarray) -> dict[str, Any]:
    if 17 in rows:
        raise DataError("17.jpg: the image is damaged", hint="replace it", details=["a detail"])
    return get(rows)


def get_ragged(rows: np.ndarray) -> dict[str, Any]:
    return {"image": [IMAGES[row][: 10 + row % 3].copy() for row in rows]}


def get_slowly(rows: np.ndarray) -> dict[str, Any]:
    time.sleep(0.05)
    return get(rows)


def broken(rows: np.ndarray) -> dict[str, Any]:
    raise ZeroDivisionError("a defect")


def finish(batch: dict[str, Any], draws: np.ndarray | None) -> dict[str, Any]:
    batch["image"] = apply(batch["image"].permute(0, 3, 1, 2), draws, SPEC, (16, 16))
    batch["threads"] = torch.tensor(torch.get_num_threads())
    return batch


def numbers(epoch: int, keys: np.ndarray) -> np.ndarray:
    return draw(SPEC, 0, epoch, keys)


def plans(epoch: int = 0, batch_size: int = 7) -> Iterator[BatchPlan]:
    order = np.random.default_rng(epoch).integers(0, COUNT, COUNT)
    keys = occurrence_keys(order)
    for number, places in enumerate(equal_batches(np.arange(COUNT), batch_size)):
        yield BatchPlan(epoch, number, order[places], keys[places])


def loader(workers: int, **more: Any) -> Loader:
    settings = {"get": get, "columns": COLUMNS, "finish": finish, "draw": numbers, "prefetch_batches": 2, **more}
    return Loader(**settings, workers=workers)


def collected(made: Any) -> dict[str, torch.Tensor]:
    batches = list(made)
    return {name: torch.cat([batch[name] for batch in batches]) for name in ("image", "label", "row")}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_bits_for_any_number_of_workers_epochs_and_evaluation(workers):
    with loader(0) as here, loader(workers) as there:
        for epoch, augmented in ((0, True), (1, True), (1, False), (0, True)):
            first = collected(here.batches(plans(epoch), augmented=augmented))
            second = collected(there.batches(plans(epoch), augmented=augmented))
            for name, value in first.items():
                assert torch.equal(value, second[name])
            rows = np.concatenate([plan.rows for plan in plans(epoch)])
            assert np.array_equal(first["row"], rows) and np.array_equal(first["label"], rows % 3)


def test_a_sample_does_not_depend_on_the_size_of_its_batch():
    with loader(0) as here:
        whole = collected(here.batches(plans(batch_size=7)))
        single = collected(here.batches(plans(batch_size=1)))
    assert torch.equal(whole["image"], single["image"])


def test_a_row_drawn_twice_in_an_epoch_looks_different():
    with loader(0) as here:
        made = collected(here.batches(plans()))
    first, second = (made["row"] == made["row"].mode().values).nonzero().flatten()[:2]
    assert not torch.equal(made["image"][first], made["image"][second])


def test_evaluation_draws_nothing():
    with loader(0, draw=broken) as here:
        made = collected(here.batches(plans(), augmented=False))
    expected = apply(torch.from_numpy(IMAGES[made["row"]]).permute(0, 3, 1, 2), None, SPEC, (16, 16))
    assert torch.equal(made["image"], expected)


def test_workers_are_kept_across_epochs_and_end_with_close():
    with loader(2) as there:
        list(there.batches(plans()))
        first = worker_ids(there)
        list(there.batches(plans(1), augmented=False))
        assert worker_ids(there) == first and len(first) == 2
    assert not any(alive(number) for number in first)


def worker_ids(there: Loader) -> list[int]:
    return [process.pid for process in there._pool._iterator._workers]


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_arrives_as_it_was_raised(workers):
    with loader(workers, get=get_but_some_are_damaged) as made:
        everything = [BatchPlan(0, n, np.array([n]), np.array([n])) for n in range(COUNT)]
        seen = []
        with pytest.raises(DataError) as caught:
            for batch in made.batches(everything):
                seen += batch["row"].tolist()
        assert seen == list(range(17)), "what came before the damaged file is delivered"
        assert caught.value.hint == "replace it" and caught.value.details == ("a detail",)
        assert len(list(made.batches(everything[:5]))) == 5, "and the loader still works"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_defect_is_not_hidden(workers):
    with loader(workers, get=broken) as made, pytest.raises(ZeroDivisionError):
        list(made.batches(plans()))


@pytest.mark.parametrize("workers", [0, 2])
def test_leaving_an_iteration_midway_is_clean(workers):
    start = time.monotonic()
    with loader(workers, get=get_slowly) as made:
        halfway = made.batches(plans())
        next(halfway)
        next(halfway)
        whole = [batch["row"] for batch in made.batches(plans(1))]
        assert np.array_equal(torch.cat(whole), np.concatenate([plan.rows for plan in plans(1)]))
        with pytest.raises(RuntimeError, match="ended by another"):
            next(halfway)
        next(made.batches(plans()))
    assert time.monotonic() - start < 10


def test_closing_twice_and_closing_unused_is_fine():
    made = loader(2)
    made.close()
    next(iter(made.batches(plans())))
    made.close()
    made.close()


def test_ragged_samples_arrive_as_lists():
    for workers in (0, 1):
        with loader(workers, get=get_ragged, finish=None) as made:
            batch = next(made.batches(plans()))
            assert [len(image) for image in batch["image"]] == [10 + row % 3 for row in batch["row"].tolist()]


def test_samples_are_made_on_one_thread_and_the_number_is_restored():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for workers in (0, 1):
            with loader(workers) as made:
                for batch in made.batches(plans()):
                    assert int(batch["threads"]) == 1 and torch.get_num_threads() == 2
        with pytest.raises(ValueError), one_thread():
            raise ValueError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_signals_for_the_job_do_not_end_workers_at_once():
    with loader(2, get=get_slowly) as made:
        iteration = made.batches(plans())
        next(iteration)
        for number in worker_ids(made):
            assert os.getpgid(number) != os.getpgid(0)
            os.kill(number, signal.SIGTERM)
            os.kill(number, signal.SIGINT)
        assert len(list(iteration)) == len(list(plans())) - 1


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_takes_nothing_from_the_global_random_state(workers):
    before = torch.get_rng_state()
    with loader(workers) as made:
        list(made.batches(plans()))
        list(made.batches(plans(1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_spawned_workers_work_too():
    with loader(1, start_method="spawn") as made, loader(0) as here:
        assert torch.equal(collected(made.batches(plans()))["image"], collected(here.batches(plans()))["image"])


def test_a_plan_is_small():
    assert len(pickle.dumps(next(plans(batch_size=32)))) < 2000


def test_the_loader_itself_costs_next_to_nothing():
    small = np.zeros((COUNT, 2), np.uint8)
    with Loader(lambda rows: {"image": small[rows]}, {}, None, None, workers=0) as made:
        same = [next(plans())] * 500
        list(made.batches(same))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for _batch in made.batches(same):
                pass
            times.append((time.perf_counter() - start) / len(same))
    assert min(times) < 1e-4
