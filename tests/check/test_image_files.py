"""Each check of the files fires at what it is for, on real small files, and is silent at ordinary ones."""

import os

import numpy as np
import pytest
from PIL import Image

from outlast.check import files
from outlast.data import look
from outlast.data.look import look_at
from outlast.env.disk import file_system
from outlast.errors import DataError
from toys.subjects import of_pictures, only, pictures, severities

ALL = [files.names_that_collide, files.links, files.remote_disk, files.small_files, files.small_images, files.modes]


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
def test_ordinary_pictures_are_passed_over_in_silence(tmp_path, check):
    made = of_pictures(tmp_path, pictures(tmp_path))
    made.file_system = lambda folder: "ext4"
    assert severities(check, made) == []


def test_names_that_differ_by_case_only_are_named(tmp_path):
    root = pictures(tmp_path)
    os.link(root / "a" / "00.jpg", root / "a" / "00.JPG")
    finding = only(files.names_that_collide, of_pictures(tmp_path, root))
    assert finding.severity == "warning" and "a/00.JPG, a/00.jpg" in finding.evidence


def test_links_are_noted(tmp_path):
    root = pictures(tmp_path)
    elsewhere = tmp_path / "elsewhere.jpg"
    (root / "a" / "00.jpg").rename(elsewhere)
    (root / "a" / "00.jpg").symlink_to(elsewhere)
    finding = only(files.links, of_pictures(tmp_path, root))
    assert finding.severity == "note" and finding.evidence == "a/00.jpg"


def test_data_behind_a_network_is_noted(tmp_path):
    made = of_pictures(tmp_path, pictures(tmp_path))
    made.file_system = lambda folder: "nfs4"
    assert only(files.remote_disk, made).severity == "note"


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\nb {tmp_path}-other xfs rw 0 0\n")
    assert file_system(tmp_path / "data", mounts) == "nfs4"
    assert file_system(tmp_path.parent, mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "none") == ""


def test_a_file_of_a_few_bytes_is_named(tmp_path):
    root = pictures(tmp_path)
    Image.new("RGB", (1, 1)).save(root / "a" / "tiny.png")
    finding = only(files.small_files, of_pictures(tmp_path, root))
    assert finding.severity == "warning" and "a/tiny.png" in finding.evidence


def test_pictures_that_must_be_blown_up_are_named(tmp_path):
    root = pictures(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "b" / "small.png")
    finding = only(files.small_images, of_pictures(tmp_path, root))
    assert finding.severity == "warning" and finding.evidence == "b/small.png (16x12)"


def test_unusual_pictures_are_noted_with_what_becomes_of_them(tmp_path):
    root = pictures(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).convert("CMYK").save(root / "a" / "print.jpg")
    Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257).save(root / "a" / "deep.png")
    Image.fromarray(noise).save(root / "b" / "wrong.png", format="JPEG")
    frames = [Image.fromarray(np.roll(noise, step)) for step in range(3)]
    frames[0].save(root / "b" / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    found = {finding.evidence: finding for finding in files.modes(of_pictures(tmp_path, root))}
    assert set(found) == {"a/print.jpg", "a/deep.png", "b/wrong.png is JPEG", "b/moving.webp"}
    assert "16 bits" in found["a/deep.png"].sentence and "first frame" in found["b/moving.webp"].sentence
    assert all(finding.severity == "note" and finding.remedy for finding in found.values())


def test_headers_are_remembered_until_a_file_changes(tmp_path):
    root = pictures(tmp_path, count=4)
    paths = sorted(str(path) for path in root.rglob("*.*"))
    for path in paths:
        os.utime(path, (1e9, 1e9))
    memo = tmp_path / "memo.json"
    first = look_at(paths, memo=memo)
    assert [(seen.format, seen.width, seen.height) for seen in first] == [("JPEG", 64, 48)] * 2 + [("PNG", 64, 48)] * 2
    # What is remembered is believed: the same size and time, other contents.
    size = os.path.getsize(paths[0])
    with open(paths[0], "wb") as file:
        file.write(b"x" * size)
    os.utime(paths[0], (1e9, 1e9))
    assert look_at(paths, memo=memo) == first
    os.utime(paths[0], (2e9, 2e9))
    assert look_at(paths, memo=memo)[0].format == ""
    memo.write_text("damaged")
    assert look_at(paths, memo=memo)[1:] == first[1:]


def test_many_files_are_shared_out_over_processes_with_the_same_answers(tmp_path, monkeypatch):
    root = pictures(tmp_path, count=10)
    (root / "a" / "text.png").write_text("no picture")
    paths = [*sorted(str(path) for path in root.rglob("*.*")), str(root / "gone.png")]
    alone = look_at(paths)
    monkeypatch.setattr(look, "_MANY", 5)
    assert look_at(paths, cores=3) == alone
    assert [seen.format for seen in alone].count("") == 2 and alone[-1].bytes == 0


def test_a_helper_that_dies_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(look, "_MANY", 2)
    monkeypatch.setattr(look.sys, "executable", "/bin/false")
    with pytest.raises(DataError):
        look_at([str(path) for path in pictures(tmp_path, count=4).rglob("*.*")], cores=2)


def test_a_jpeg_is_looked_at_as_pil_does_whatever_its_kind(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x010E] = "x" * 20_000  # longer than what is read at first
    ways = {
        "plain": {}, "progressive": {"progressive": True}, "exif": {"exif": exif}, "comment": {"comment": b"leaf"},
        "profile": {"icc_profile": b"p" * 3000}, "restart": {"restart_marker_rows": 1},
    }  # fmt: skip
    for name, how in ways.items():
        picture.save(tmp_path / f"{name}.jpg", **how)
    for mode in ("L", "CMYK"):
        picture.convert(mode).save(tmp_path / f"{mode}.jpg")
    picture.save(tmp_path / "several.jpg", format="MPO", save_all=True, append_images=[picture])
    whole = (tmp_path / "plain.jpg").read_bytes()
    for length in (*range(0, 700, 7), len(whole) - 5):
        (tmp_path / f"cut-{length}.jpg").write_bytes(whole[:length])
    for place in range(0, 640, 5):
        (tmp_path / f"bent-{place}.jpg").write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
    paths = sorted(map(str, tmp_path.iterdir()))
    for path, seen in zip(paths, look_at(paths), strict=True):
        try:
            with Image.open(path) as image:
                expected = (image.format, image.mode, *image.size)
        except look.UNREADABLE:
            expected = ("", "", 0, 0)
        assert (seen.format, seen.mode, seen.width, seen.height) == expected, path
