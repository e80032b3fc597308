"""Each check of the samples fires at what it is for, and is silent at ordinary ones; each sample is read once."""

import numpy as np
import pytest

from outlast.check import samples
from outlast.check.finding import run
from toys import plan
from toys.subjects import of_pictures, only, pictures, severities, subject


def reading(tmp_path, change, **more):
    """A subject whose samples are {"image": float32 (3, 8, 8), "mask": uint8 (8, 8)} with `change(number, sample)`."""

    def read(config, root, row):
        number = int(row["id"].rpartition("-")[2])
        random = np.random.default_rng(number)
        sample = {
            "image": random.normal(size=(3, 8, 8)).astype(np.float32),
            "mask": random.integers(0, 3, (8, 8)).astype(np.uint8),
        }
        change(number, sample)
        return sample

    tmp_path.mkdir(exist_ok=True)
    return subject(tmp_path, changes={"read": read}, **more)


ALL = [
    samples.damaged, samples.other_arrays, samples.flat_images, samples.flat_bands, samples.not_finite,
    samples.mask_values, samples.unmarked_masks, samples.pairs,
]  # fmt: skip


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__)
def test_ordinary_samples_are_passed_over_in_silence(tmp_path, check):
    assert severities(check, reading(tmp_path, lambda number, sample: None)) == []


def test_damaged_files_are_named_and_the_others_still_checked(tmp_path):
    root = pictures(tmp_path)
    for name in ("a/00.jpg", "b/03.png"):
        path = root / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (root / "b" / "05.png").write_bytes(b"<html>not found</html>")
    made = of_pictures(tmp_path, root)
    finding = only(samples.damaged, made)
    assert finding.severity == "error" and finding.sentence.startswith("3 of 24 ")
    assert all(name in finding.evidence for name in ("00.jpg", "03.png", "05.png"))
    assert len(made.readings[0].samples.arrays) == 21
    assert len(made.trials[0].batches) == 2  # the model is tried on those that can be read


def test_at_most_eight_files_are_named(tmp_path):
    root = pictures(tmp_path)
    for path in (root / "a").iterdir():
        path.write_bytes(b"no picture")
    assert only(samples.damaged, of_pictures(tmp_path, root)).evidence.endswith("and 4 more")


def test_what_a_reader_raises_is_a_finding_that_names_the_sample(tmp_path):
    def change(number, sample):
        if number == 7:
            raise KeyError("band 5")

    finding = only(samples.damaged, reading(tmp_path, change))
    assert "image-007" in finding.evidence and "band 5" in finding.evidence


@pytest.mark.parametrize("odd", [0, 30])
@pytest.mark.parametrize("kind", ["dtype", "bands", "missing"])
def test_samples_with_other_arrays_are_named_also_the_first(tmp_path, odd, kind):
    def change(number, sample):
        if number == odd:
            if kind == "dtype":
                sample["image"] = sample["image"].astype(np.float64)
            elif kind == "bands":
                sample["image"] = sample["image"][:2]
            else:
                del sample["mask"]

    finding = only(samples.other_arrays, reading(tmp_path, change))
    assert finding.severity == "error" and finding.sentence.startswith("1 samples")
    assert finding.evidence.startswith(f"image-{odd:03d}: ")


def test_other_heights_and_widths_are_no_finding(tmp_path):
    def change(number, sample):
        if number % 2:
            sample["image"], sample["mask"] = sample["image"][:, :6], sample["mask"][:6]

    assert {finding.severity for finding in run([samples], reading(tmp_path, change))} == set()


def test_pictures_of_one_colour_are_named(tmp_path):
    def change(number, sample):
        sample["image"] = (sample["image"] * 40 + 128).clip(0, 255).astype(np.uint8)
        if number == 4:
            sample["image"][:] = 17
        if number == 9:  # noise of the sensor only
            sample["image"] = (sample["image"] > 128).astype(np.uint8) + 3

    finding = only(samples.flat_images, reading(tmp_path, change))
    assert finding.severity == "warning" and finding.evidence == "image-004, image-009"


def test_constant_bands_are_told_in_one_sample_or_in_all(tmp_path):
    def one(number, sample):
        if number == 4:
            sample["image"][1] = 0

    def all_of_them(number, sample):
        sample["image"][2] = 5

    assert only(samples.flat_bands, reading(tmp_path / "one", one)).evidence == "image-004"
    assert "constant in every sample" in only(samples.flat_bands, reading(tmp_path / "all", all_of_them)).sentence


def test_values_that_are_not_finite_are_errors(tmp_path):
    def change(number, sample):
        if number == 11:
            sample["image"][0, 0, :2] = (np.nan, np.inf)

    finding = only(samples.not_finite, reading(tmp_path, change))
    assert finding.severity == "error" and finding.evidence == "image-011 (2 values)"
    assert severities(samples.not_finite, reading(tmp_path, change, facts={"gaps": ["image"]})) == []
    assert severities(samples.not_finite, reading(tmp_path, change, facts={"gaps": ["other"]})) == ["error"]


def test_mask_values_outside_the_classes_are_errors_unless_they_are_to_be_ignored(tmp_path):
    def change(number, sample):
        if number == 2:
            sample["mask"][0] = 255

    finding = only(samples.mask_values, reading(tmp_path, change))
    assert finding.severity == "error" and finding.sentence.endswith("255") and finding.evidence == "image-002"
    assert severities(samples.mask_values, reading(tmp_path, change, facts={"ignore": 255})) == []


def test_masks_in_which_nothing_is_marked_are_an_error(tmp_path):
    def change(number, sample):
        sample["mask"][:] = 0

    assert only(samples.unmarked_masks, reading(tmp_path, change)).severity == "error"


def test_a_mask_of_another_size_than_its_image_is_an_error(tmp_path):
    def change(number, sample):
        if number == 3:
            sample["mask"] = sample["mask"][:5]

    finding = only(samples.pairs, reading(tmp_path, change))
    assert finding.severity == "error" and finding.evidence == "image-003: image 8x8, mask 5x8"


def test_each_sample_is_decoded_once_and_never_again(tmp_path, monkeypatch):
    times = []
    monkeypatch.setattr(plan, "ACCIDENT", [times.append])
    first = subject(tmp_path)
    noted = first.readings[0].samples
    assert times.count("read") == 60 + 3  # three tell what the arrays are like
    again = subject(tmp_path)
    assert again.readings[0].samples == noted and times.count("read") == 63
    # A cache that training made, without notes beside it.
    for path in (tmp_path / "scratch" / "checks").iterdir():
        path.unlink()
    assert subject(tmp_path).readings[0].samples == noted and times.count("read") == 63
