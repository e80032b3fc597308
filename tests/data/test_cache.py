import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outlast.data import cache as module
from outlast.data.cache import build
from outlast.errors import DataError

ROW_BYTES = 6 * 5 * 3 + 8


def read(row: dict[str, Any]) -> dict[str, np.ndarray]:
    if row.get("damaged"):
        raise DataError(f"{row['id']}: the image is damaged", hint="replace it")
    image = np.full((6 + row.get("extra", 0), 5, 3), row["id"] % 251, np.uint8)
    return {"image": image, "weight": np.float64(row["id"] / 3)}


def rows_of(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": n, **more} for n in range(count)]


def built(folder: Path, rows: list[dict[str, Any]], key: str = "key", budget: int = 10**9, **more: Any) -> module.Cache:
    return build(rows, more.pop("read", read), key=key, folder=folder, budget_bytes=budget, **more)


def check(cache: module.Cache, positions: list[int]) -> None:
    got = cache.get(np.asarray(positions, np.int64))
    for n, position in enumerate(positions):
        expected = read(cache.rows[position])
        assert np.array_equal(got["image"][n], expected["image"]) and got["weight"][n] == expected["weight"]


def test_samples_come_back_in_any_order_and_are_read_only_once(tmp_path):
    calls, progress = [], []

    def counted(row: dict[str, Any]) -> dict[str, np.ndarray]:
        calls.append(row["id"])
        return read(row)

    with built(tmp_path, rows_of(300), read=counted, threads=3, progress=lambda *call: progress.append(call)) as cache:
        assert sorted(calls) == list(range(300)) and progress == [(n, 300) for n in range(1, 301)]
        assert cache.complete and cache.note == ""
        check(cache, [299, 0, 7, 7, 120])
        got = cache.get(np.array([3, 4]))
        assert got["image"].shape == (2, 6, 5, 3) and got["image"].dtype == np.uint8 and got["image"].flags.writeable
        assert got["weight"].shape == (2,) and got["weight"].dtype == np.float64
    with built(tmp_path, rows_of(300), read=counted) as again:
        check(again, [5, 299])
    assert len(calls) == 300


def test_ragged_samples_come_back_as_lists(tmp_path):
    rows = [{"id": n, "extra": n % 4} for n in range(20)]
    with built(tmp_path, rows) as cache:
        got = cache.get(np.array([0, 3, 19]))
        assert [image.shape for image in got["image"]] == [(6, 5, 3), (9, 5, 3), (9, 5, 3)]
        assert isinstance(got["weight"], np.ndarray)
        check(cache, [19, 1, 2, 0])


def test_no_rows_and_other_dtypes_work(tmp_path):
    with built(tmp_path, []) as cache:
        assert cache.complete and cache.get(np.array([], np.int64)) == {}
    bands = partial(_bands)
    with built(tmp_path, rows_of(4), key="bands", read=bands) as cache:
        got = cache.get(np.array([2, 1]))["bands"]
        assert got.dtype == np.int16 and got[0, 0, 0, 0] == -2


def _bands(row: dict[str, Any]) -> dict[str, np.ndarray]:
    return {"bands": np.full((7, 4, 4), -row["id"], np.int16)}


@pytest.mark.parametrize("verify", [True, False])
def test_what_exceeds_the_budget_is_read_on_demand_and_said(tmp_path, verify):
    with built(tmp_path, rows_of(50), budget=20 * ROW_BYTES + 5, verify=verify) as cache:
        assert cache.cached == 20 and not cache.complete
        assert "20 of 50" in cache.note and "cache_gigabytes" in cache.note
        check(cache, [3, 19, 20, 49, 0])
        assert cache.get(np.array([30, 2]))["image"].shape == (2, 6, 5, 3)
    with built(tmp_path, rows_of(50), budget=20 * ROW_BYTES + 5) as again:
        assert again.cached == 20
    with built(tmp_path, rows_of(50)) as larger:
        assert larger.complete, "a larger budget builds it anew"


def test_a_budget_of_zero_caches_nothing_but_still_finds_damage(tmp_path):
    with built(tmp_path, rows_of(5), budget=0) as cache:
        assert cache.cached == 0
        check(cache, [4, 1])
    with pytest.raises(DataError, match="can't be read"):
        built(tmp_path, [*rows_of(5), {"id": 6, "damaged": True}], key="other", budget=0)


def test_a_full_disk_keeps_what_fits_and_says_so(tmp_path, monkeypatch):
    real, written = module._write_all, []

    def fails_later(file: Any, value: np.ndarray) -> None:
        if len(written) >= 21:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        written.append(value)
        real(file, value)

    monkeypatch.setattr(module, "_write_all", fails_later)
    with built(tmp_path, rows_of(50)) as cache:
        assert cache.cached == 10 and "the disk is full" in cache.note
        check(cache, [9, 10, 49])


def test_all_damaged_files_are_named_and_nothing_is_left_behind(tmp_path):
    rows = rows_of(30)
    for n in (3, 17, 29):
        rows[n]["damaged"] = True
    with pytest.raises(DataError, match="3 of 30 samples") as caught:
        built(tmp_path, rows)
    assert [line.split(":")[0] for line in caught.value.details] == ["3", "17", "29"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_defect_in_read_is_not_taken_for_damage(tmp_path):
    with pytest.raises(ZeroDivisionError):
        built(tmp_path, rows_of(30), read=lambda row: {"x": 1 // 0})
    shapes = iter([{"a": np.zeros(2)}, {"b": np.zeros(2)}])
    with pytest.raises(TypeError, match="same arrays"):
        built(tmp_path, rows_of(2), read=lambda row: next(shapes), threads=1)


def test_the_least_recently_used_goes_first_but_never_one_in_use(tmp_path):
    size = 100 * ROW_BYTES + 1000  # and a little for the description
    for n, key in enumerate(("old", "middle", "new")):
        built(tmp_path, rows_of(100), key, 3 * size).close()
        os.utime(tmp_path / key, (1e9 + n, 1e9 + n))
    built(tmp_path, rows_of(100), "old", 3 * size).close()  # used again: now "middle" is the oldest
    with built(tmp_path, rows_of(100), "fourth", 3 * size) as fourth:
        assert fourth.complete
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"old", "new", "fourth"}
        with (
            built(tmp_path, rows_of(100), "old", 3 * size) as old,
            built(tmp_path, rows_of(100), "new", 3 * size) as new,
        ):
            for _ in range(2):
                with built(tmp_path, rows_of(100), "fifth", 3 * size) as fifth:
                    assert fifth.cached < 100, "all others are in use"
            for cache in (old, new, fourth):
                check(cache, [99, 0])
    with built(tmp_path, rows_of(100), "fifth", 3 * size) as fifth:
        assert fifth.complete, "there is room now: it is built anew"


def test_a_cache_that_lost_bytes_is_refused(tmp_path):
    built(tmp_path, rows_of(10)).close()
    with (tmp_path / "key" / "0.bin").open("r+b") as file:
        file.truncate(50)
    with pytest.raises(DataError, match="damaged"):
        built(tmp_path, rows_of(10))


BUILDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_cache
def slow(row):
    time.sleep(0.01)
    return test_cache.read(row)
with test_cache.built(Path({folder!r}), test_cache.rows_of(300), read=slow,
                      progress=lambda done, total: print(done, flush=True)) as cache:
    print("built", cache.complete, flush=True)
"""


def start_builder(folder: Path) -> subprocess.Popen[str]:
    code = BUILDER.format(tests=str(Path(__file__).parent), folder=str(folder))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_killed_build_leaves_nothing_that_looks_finished(tmp_path):
    process = start_builder(tmp_path)
    assert process.stdout
    for line in process.stdout:
        if line.strip() == "50":
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "key").exists() and len(list(tmp_path.glob(".tmp-*"))) == 1
    with built(tmp_path, rows_of(300)) as cache:
        assert cache.complete
        check(cache, [0, 299])
    assert list(tmp_path.glob(".tmp-*")) == [], "the dead build was removed"


def test_processes_that_race_for_a_key_build_it_once(tmp_path):
    one, two = start_builder(tmp_path), start_builder(tmp_path)
    outputs = sorted((one.communicate(timeout=60)[0].split("\n"), two.communicate(timeout=60)[0].split("\n")), key=len)
    assert outputs[0][:1] == ["built True"], "the second one found the cache of the first"
    assert len(outputs[1]) > 300 and "built True" in outputs[1]
    assert list(tmp_path.glob(".tmp-*")) == []


def test_without_file_locks_the_rename_decides_the_race(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    caches: list[module.Cache] = []
    threads = [threading.Thread(target=lambda: caches.append(built(tmp_path, rows_of(200)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caches) == 3
    for cache in caches:
        check(cache, [199, 0])
        cache.close()


def get_elsewhere(cache: module.Cache, queue: Any) -> None:
    queue.put(cache.get(np.array([7, 41]))["image"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_open_the_files_themselves(tmp_path, method):
    context = multiprocessing.get_context(method)
    with built(tmp_path, rows_of(50), budget=40 * ROW_BYTES) as cache:
        queue = context.Queue()
        worker = context.Process(target=get_elsewhere, args=(cache, queue))
        worker.start()
        image = queue.get(timeout=60)
        worker.join()
    assert image[0, 0, 0, 0] == 7 and image[1, 0, 0, 0] == 41


def test_pickles_are_small_and_a_removed_cache_says_so(tmp_path):
    with built(tmp_path, rows_of(2)) as cache:
        copy = pickle.loads(pickle.dumps(cache))
    shutil.rmtree(tmp_path / "key")
    with pytest.raises(FileNotFoundError):
        copy.get(np.array([0]))


def test_gathering_a_batch_takes_microseconds(tmp_path):
    with built(tmp_path, rows_of(500)) as cache:
        positions = np.arange(32) * 7
        cache.get(positions)
        times = []
        for _ in range(30):
            start = time.perf_counter()
            cache.get(positions)
            times.append(time.perf_counter() - start)
    assert min(times) < 1e-4
