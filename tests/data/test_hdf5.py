import hashlib
import io
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from outlast.data.hdf5 import HDF5Images, JPEGFolder, hash_images, match_ids, open_images, read_by_id, scan_images
from outlast.errors import DataError, DataNotFoundError

NAMES = [f"ISIC_{number:07}" for number in range(24)]


def jpeg(number: int) -> bytes:
    """A small picture, another for every number."""
    pixels = np.random.default_rng(number).integers(0, 255, (9, 11, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def write_hdf5(path, contents, form=np.void):
    with h5py.File(path, "w") as file:
        for name, data in contents.items():
            file[name] = form(data)
    return path


def write_folder(path, contents):
    path.mkdir()
    for name, data in contents.items():
        (path / f"{name}.jpg").write_bytes(data)
    return path


@pytest.fixture
def contents():
    return {name: jpeg(number) for number, name in enumerate(NAMES)}


@pytest.fixture(params=["file", "folder"])
def source(request, tmp_path, contents):
    """The same images in an HDF5 file and in a folder."""
    if request.param == "file":
        return open_images(write_hdf5(tmp_path / "images.hdf5", contents))
    return open_images(write_folder(tmp_path / "image", contents))


def test_a_file_and_a_folder_give_the_same_pictures_by_id(source, contents):
    assert source.ids() == NAMES
    for name in reversed(NAMES):
        assert source.data(name) == contents[name]
        assert np.array_equal(read_by_id(source, name), np.asarray(Image.open(io.BytesIO(contents[name]))))
    assert read_by_id(source, NAMES[0], channels=1).shape == (9, 11, 1)
    assert hash_images(source, NAMES) == [hashlib.sha256(contents[name]).hexdigest() for name in NAMES]
    seen = []
    scan_images(source, NAMES, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(24, 24)]


@pytest.mark.parametrize(
    "form", [np.void, np.bytes_, lambda data: np.frombuffer(data, np.uint8)], ids=["opaque", "string", "array"]
)
def test_bytes_may_be_stored_in_any_usual_form(tmp_path, contents, form):
    with HDF5Images(write_hdf5(tmp_path / "images.h5", contents, form)) as images:
        assert [images.data(name) for name in NAMES] == list(contents.values())


def _open_descriptors(path):
    """The descriptors of this process that lead to the file."""
    numbers = [int(number) for number in os.listdir("/proc/self/fd")]
    links = [f"/proc/self/fd/{number}" for number in numbers]
    same = [os.path.exists(link) and os.path.samefile(link, path) for link in links]
    return [number for number, leads in zip(numbers, same, strict=True) if leads]


def _read_in_child(images, names, answers):
    inherited = _open_descriptors(images.path)
    for number in inherited:
        os.lseek(number, 12_345, os.SEEK_SET)  # a mark that the parent's descriptor shares, and one opened anew doesn't
    read = {name: hashlib.sha256(images.data(name)).hexdigest() for name in names * 20}
    during = [os.lseek(number, 0, os.SEEK_CUR) == 12_345 for number in _open_descriptors(images.path)]
    images.close()
    answers.put((len(inherited), during, _open_descriptors(images.path), read))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_the_file_themselves_and_read_what_is_there(tmp_path, contents, method):
    images = HDF5Images(write_hdf5(tmp_path / "images.hdf5", contents))
    assert images.data(NAMES[0]) == contents[NAMES[0]]  # the parent has it open when the workers start
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    workers = [context.Process(target=_read_in_child, args=(images, NAMES[at:], answers)) for at in range(2)]
    for worker in workers:
        worker.start()
    for name in NAMES * 10:
        assert images.data(name) == contents[name]
    for _ in workers:
        inherited, during, after, read = answers.get(timeout=60)
        assert (inherited, during, after) == (int(method == "fork"), [False], [])
        assert all(digest == hashlib.sha256(contents[name]).hexdigest() for name, digest in read.items())
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert images.data(NAMES[1]) == contents[NAMES[1]], "what a worker closes stays open here"
    images.close()
    assert _open_descriptors(images.path) == []


def test_threads_share_a_source(source, contents):
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.data, NAMES * 50)) == [contents[name] for name in NAMES] * 50


def test_a_pickled_source_carries_neither_handle_nor_ids(source, contents):
    source.ids()
    data = pickle.dumps(source)
    assert len(data) < 1000 and b"ISIC" not in data
    assert pickle.loads(data).data(NAMES[3]) == contents[NAMES[3]]


def test_a_closed_source_opens_again(source, contents):
    source.data(NAMES[0])
    source.close()
    source.close()
    assert _open_descriptors(source.path) == []
    assert source.data(NAMES[5]) == contents[NAMES[5]]


def test_ids_of_table_and_images_must_be_the_same(source):
    assert match_ids(source, NAMES[::-1], "train.csv") == []
    with pytest.raises(DataError, match=r"1 ids stand twice, 1 rows have no image, 2 images have no row") as caught:
        match_ids(source, [*NAMES[2:], "ISIC_9999999", NAMES[4]], "train.csv")
    details = "\n".join(caught.value.details)
    assert "ISIC_0000004: train.csv has two rows" in details
    assert f"ISIC_9999999: a row of train.csv without an image in {source.path}" in details
    assert f"ISIC_0000000: an image in {source.path} without a row in train.csv" in details
    assert len(caught.value.details) == 4


def test_a_table_that_was_cut_down_is_told_what_it_leaves_out(source):
    assert match_ids(source, pd.Series(NAMES[3:]), "train.csv", unlisted_allowed=True) == NAMES[:3]
    with pytest.raises(DataError, match="1 rows have no image") as caught:
        match_ids(source, ["ISIC_9999999"], "train.csv", unlisted_allowed=True)
    assert len(caught.value.details) == 1


def test_many_ids_are_counted_and_a_few_named(source):
    with pytest.raises(DataError, match="3000 rows have no image") as caught:
        match_ids(source, [*NAMES, *(f"X{number:05}" for number in range(3000))], "t.csv")
    assert len(caught.value.details) == 11 and caught.value.details[-1] == "and 2990 more"


def test_an_id_without_image_is_named_when_it_is_read(source):
    with pytest.raises(DataError, match=r"ISIC_9: there is no image with this id in .*image"):
        source.data("ISIC_9")


def test_damaged_pictures_are_named_by_id_all_together(tmp_path, contents):
    contents[NAMES[2]] = contents[NAMES[2]][:200]
    contents[NAMES[7]] = b"no picture at all"
    for images in (
        open_images(write_hdf5(tmp_path / "images.hdf5", contents)),
        open_images(write_folder(tmp_path / "image", contents)),
    ):
        with pytest.raises(DataError, match=f"{NAMES[2]} in .*: the image is damaged"):
            read_by_id(images, NAMES[2])
        with pytest.raises(DataError, match="2 of 24 samples can't be read") as caught:
            scan_images(images, NAMES)
        assert [NAMES[2] in caught.value.details[0], NAMES[7] in caught.value.details[1]] == [True, True]


def test_entries_that_hold_no_bytes_are_named(tmp_path):
    path = tmp_path / "images.hdf5"
    with h5py.File(path, "w") as file:
        file["pixels"] = np.zeros((4, 4, 3), np.uint8)
        file["numbers"] = np.zeros(4)
        file["empty"] = h5py.Empty("f")
        file.create_group("group")
    images = open_images(path)
    for name in ("pixels", "numbers", "empty", "group"):
        with pytest.raises(DataError, match=f"{name}: the entry in"):
            images.data(name)


def test_a_damaged_entry_is_named(tmp_path):
    path = tmp_path / "images.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("whole", data=np.arange(100, dtype=np.uint8), chunks=(100,), fletcher32=True)
        file.create_dataset("broken", data=np.arange(100, 200, dtype=np.uint8), chunks=(100,), fletcher32=True)
    data = bytearray(path.read_bytes())
    data[data.index(bytes(range(100, 200))) + 50] ^= 1
    path.write_bytes(data)
    images = open_images(path)
    assert images.data("whole") == bytes(range(100))
    with pytest.raises(DataError, match=r"broken: the entry in .* can't be read"):
        images.data("broken")


@pytest.mark.parametrize("what", ["absent", "pointer", "short"])
def test_what_is_no_whole_file_says_so(tmp_path, contents, what):
    path = tmp_path / "images.hdf5"
    if what == "absent":
        with pytest.raises(DataNotFoundError, match="no images at"):
            open_images(path)
        return
    write_hdf5(path, contents)
    path.write_bytes(b"version https://git-lfs" if what == "pointer" else path.read_bytes()[:5000])
    with pytest.raises(DataError, match="is not a whole HDF5 file"):
        open_images(path).ids()


def test_two_files_of_one_id_are_named(tmp_path, contents):
    folder = write_folder(tmp_path / "image", contents)
    (folder / f"{NAMES[3]}.JPEG").write_bytes(contents[NAMES[4]])
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 ids in .* have two files") as caught:
        JPEGFolder(folder).ids()
    assert "ISIC_0000003.JPEG" in caught.value.details[0] and "ISIC_0000003.jpg" in caught.value.details[0]


def test_a_file_that_went_away_is_named(tmp_path, contents):
    images = JPEGFolder(write_folder(tmp_path / "image", contents))
    images.ids()
    (images.path / f"{NAMES[1]}.jpg").unlink()
    with pytest.raises(DataError, match=r"ISIC_0000001: .*ISIC_0000001.jpg can't be read"):
        images.data(NAMES[1])


@pytest.mark.real_data
def test_the_real_samples_are_read_from_file_and_folder(real_data):
    folder = real_data / "lesions" / "isic"
    for table, place in (("test-metadata.csv", "test-image.hdf5"), ("train-metadata.csv", "train-image/image")):
        images = open_images(folder / place)
        ids = pd.read_csv(folder / table)["isic_id"].tolist()
        assert match_ids(images, ids, table) == []
        assert read_by_id(images, ids[0]).shape[2] == 3
        assert len(set(hash_images(images, ids[:50]))) == 50
        images.close()
