import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from outlast.data import readers
from outlast.data.readers import center_crop, decode_image, hash_files, list_images, read_image, resize, scan
from outlast.errors import DataError

RAMP = np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=2)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_colour_images_come_back_as_they_are(tmp_path):
    for name in ("a.png", "a.bmp", "a.tif"):
        assert np.array_equal(read_image(save(tmp_path / name, COLOURS)), COLOURS)
    webp = read_image(save(tmp_path / "a.webp", COLOURS, lossless=True))
    assert np.array_equal(webp, COLOURS) and webp.dtype == np.uint8


def test_grey_becomes_three_channels_or_stays_one(tmp_path):
    path = save(tmp_path / "grey.png", RAMP)
    assert np.array_equal(read_image(path), np.repeat(RAMP[:, :, None], 3, axis=2))
    assert np.array_equal(read_image(path, channels=1), RAMP[:, :, None])


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = RAMP.astype(np.uint16) * 257
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name, channels=1)[:, :, 0], RAMP)
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "int.tif")
    assert np.array_equal(read_image(tmp_path / "int.tif")[:, :, 1], RAMP)


def test_transparency_is_laid_on_white(tmp_path):
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:12] = 255
    pixels = read_image(save(tmp_path / "a.png", np.dstack([COLOURS, alpha])))
    assert np.array_equal(pixels[:12], COLOURS[:12]) and (pixels[12:] == 255).all()
    palette = Image.fromarray(RAMP).convert("P")
    palette.save(tmp_path / "p.png", transparency=int(np.asarray(palette)[0, 0]))
    assert (read_image(tmp_path / "p.png")[0, 0] == 255).all()


def test_palette_cmyk_and_one_bit_images_are_read(tmp_path):
    assert read_image(save(tmp_path / "p.png", COLOURS, "P")).shape == (24, 32, 3)
    cmyk = read_image(save(tmp_path / "c.jpg", COLOURS, "CMYK", quality=100))
    assert np.abs(cmyk.astype(int) - COLOURS).mean() < 8
    bits = read_image(save(tmp_path / "b.png", RAMP, "1"))
    assert set(np.unique(bits)) == {0, 255}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_also_to_scaled_decoding(tmp_path, orientation):
    tall = np.zeros((256, 128, 3), np.uint8)
    tall[:64] = 255  # the top is white
    exif = Image.Exif()
    exif[0x0112] = orientation
    rotated, upside_down = tall.transpose(1, 0, 2), tall[::-1, ::-1]
    stored = [tall, tall[:, ::-1], upside_down, tall[::-1], rotated, np.rot90(tall), upside_down.transpose(1, 0, 2)]
    turned = [*stored, np.rot90(tall, -1)][orientation - 1]
    path = save(tmp_path / "a.jpg", np.ascontiguousarray(turned), exif=exif, quality=95)
    for needed, factor in ((None, 1), ((128, 64), 2)):
        pixels = read_image(path, at_least=needed)
        assert pixels.shape == (256 // factor, 128 // factor, 3)
        assert pixels[: 48 // factor].min() > 200 and pixels[80 // factor :].max() < 50


def test_scaled_decoding_is_never_smaller_than_needed(tmp_path):
    path = save(tmp_path / "a.jpg", np.zeros((300, 200, 3), np.uint8))
    for needed in ((10, 10), (38, 25), (80, 60), (150, 100), (151, 100), (400, 400)):
        height, width = read_image(path, at_least=needed).shape[:2]
        assert height >= min(needed[0], 300) and width >= min(needed[1], 200)
    assert read_image(path, at_least=(37, 25)).shape[:2] == (38, 25)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    whole = save(folder / "whole.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    png = save(folder / "whole.png", COLOURS).read_bytes()
    contents = {
        "truncated.jpg": (whole[: len(whole) // 2], "damaged"),
        "header-only.jpg": (whole[:20], "not an image"),
        "truncated.png": (png[: len(png) // 2], "damaged"),
        "zeroed.png": (png[:60] + bytes(len(png) - 60), "damaged"),
        "zero.jpg": (b"", "empty"),
        "text.jpg": (b"this is a text", "not an image"),
    }
    bad = {}
    for name, (data, reason) in contents.items():
        (folder / name).write_bytes(data)
        bad[name] = (folder / name, reason)
    bad["gone.jpg"] = (folder / "gone.jpg", "doesn't exist")
    (folder / "folder.jpg").mkdir()
    bad["folder.jpg"] = (folder / "folder.jpg", "folder")
    Image.fromarray(RAMP.astype(np.float32)).save(folder / "float.tif")
    bad["float.tif"] = (folder / "float.tif", "floating-point")
    return bad


def test_every_unreadable_file_is_named_with_a_remedy(tmp_path):
    for path, reason in bad_files(tmp_path).values():
        with pytest.raises(DataError, match=reason) as caught:
            read_image(path)
        assert str(path) in caught.value.message and caught.value.hint and "\n" not in caught.value.message


def test_damaged_bytes_are_named_too(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(COLOURS).save(stream, "PNG")
    assert np.array_equal(decode_image(stream.getvalue(), "ISIC_1"), COLOURS)
    for data, reason in ((b"", "empty"), (b"junk", "not an image"), (stream.getvalue()[:70], "damaged")):
        with pytest.raises(DataError, match=f"ISIC_1.*{reason}"):
            decode_image(data, "ISIC_1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    path = save(tmp_path / "secret.png", RAMP)
    path.chmod(0)
    with pytest.raises(DataError, match=r"secret\.png.*permission"):
        read_image(path)


def test_permission_errors_of_the_system_are_named(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(readers.Image, "open", refuse)
    with pytest.raises(DataError, match=r"a\.png: no permission") as caught:
        read_image(tmp_path / "a.png")
    assert "chmod" in caught.value.hint


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "big.png", np.zeros((100, 100), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"big\.png.*too large"):
        read_image(path)


def test_scan_names_all_damaged_files_in_one_error(tmp_path):
    bad = bad_files(tmp_path)
    calls = []
    with pytest.raises(DataError, match=f"{len(bad)} of {len(bad) + 1} samples") as caught:
        scan([tmp_path / "whole.jpg", *(path for path, _ in bad.values())], progress=lambda *call: calls.append(call))
    assert all(name in str(caught.value) for name in bad) and "whole.jpg" not in str(caught.value)
    assert calls[-1] == (len(bad) + 1, len(bad) + 1)


def test_listing_is_sorted_and_ignores_what_is_no_image(tmp_path):
    for name in ("b.PNG", "a.JPeg", "sub/ü mlaut.tif", "sub/deep/x.webp", ".hidden.png", "__MACOSX/._a.jpg", "n.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.JPeg", "b.PNG", "gone.png", "sub/deep/x.webp", "sub/ü mlaut.tif"]
    with pytest.raises(DataError, match="doesn't exist"):
        list_images(tmp_path / "nowhere")


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path, memo = tmp_path / "a b.bin", tmp_path / "memo" / "hashes.json"
    path.write_bytes(b"one")
    os.utime(path, (1e9, 1e9))
    first = hash_files([path, path], memo=memo)
    assert first[0] == first[1] == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    opened = []
    monkeypatch.setattr(readers.hashlib, "file_digest", lambda *a: opened.append(a))
    assert hash_files([path], memo=memo) == first[:1] and not opened
    monkeypatch.undo()
    path.write_bytes(b"two")
    os.utime(path, (1e9 + 1, 1e9 + 1))
    assert hash_files([path], memo=memo) != first[:1]


def test_a_file_changed_just_now_is_not_remembered_and_a_damaged_memo_is_ignored(tmp_path):
    path, memo = tmp_path / "a.bin", tmp_path / "hashes.json"
    memo.write_text("{broken")
    path.write_bytes(b"one")
    first = hash_files([path], memo=memo)
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hash_files([path], memo=memo) != first


def test_files_that_cannot_be_hashed_are_all_named(tmp_path):
    (tmp_path / "ok").touch()
    with pytest.raises(DataError) as caught:
        hash_files([tmp_path / "ok", tmp_path / "one", tmp_path / "two"])
    assert "one" in str(caught.value) and "two" in str(caught.value) and "2 of 3" in str(caught.value)


def test_center_crop_and_resize_keep_channels():
    image = np.arange(100 * 50 * 3, dtype=np.uint8).reshape(100, 50, 3)
    assert np.array_equal(center_crop(image, 0.7), image[15:85, 7:42])
    assert center_crop(image, 1.0).shape == image.shape
    assert resize(image, (20, 30)).shape == (20, 30, 3)
    assert resize(image[:, :, :1], (20, 30)).shape == (20, 30, 1)
