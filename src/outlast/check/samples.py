"""What the samples hold once they are decoded: damage, emptiness, bands, masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from outlast.check.finding import Finding, error, unchecked, warning
from outlast.check.reading import Array, Reading, is_mask
from outlast.check.subject import Subject
from outlast.errors import listed

_NEARLY_FLAT = 2.0  # standard deviation of 8-bit values: noise of a covered lens, not a picture
_ALL_BYTES = 256


def damaged(subject: Subject) -> Iterator[Finding]:
    """Files that can't be decoded to their end."""
    for reading in subject.readings:
        problems = reading.samples.damaged
        if problems:
            yield error(
                f"{len(problems)} of {len(reading.examples.table)} samples can't be read",
                evidence=listed(list(problems.values())),
                remedy="replace these files with whole copies, or take them out of the data set",
            )
        unseen = len(reading.examples.table) - len(reading.samples.arrays) - len(problems) - len(reading.samples.odd)
        if unseen > 0:
            yield unchecked(
                f"{unseen} samples were decoded by an earlier session, but not kept in the cache",
                remedy="give more room with loading.cache_gigabytes",
            )


def other_arrays(subject: Subject) -> Iterator[Finding]:
    """Samples whose arrays have other names, types, dimensions or numbers of channels than the rest."""
    for reading in subject.readings:
        odd = reading.samples.odd
        if odd:
            yield error(
                f"{len(odd)} samples have other arrays than the rest",
                evidence=listed([f"{name}: {how}" for name, how in odd.items()]),
                remedy="bring them to the bands and the type of the others, or take them out of the data set",
            )


def flat_images(subject: Subject) -> Iterator[Finding]:
    """Pictures of one colour: a covered lens, an empty tile, a failed download."""
    for reading in subject.readings:
        flat = [
            name
            for name, arrays in reading.samples.arrays.items()
            if any(_is_flat(array) for key, array in arrays.items() if not is_mask(key))
        ]
        if flat:
            yield warning(
                f"{len(flat)} samples are of one colour, or almost",
                evidence=listed(flat),
                remedy="open them; delete or replace those that show nothing",
            )


def flat_bands(subject: Subject) -> Iterator[Finding]:
    """Bands that say nothing, in single samples or in all of them."""
    for reading in subject.readings:
        for name, arrays in _by_name(reading).items():
            pictures = {sample: array for sample, array in arrays.items() if len(array.shape) == 3}
            # Of a sample without any content, the check of flat images tells.
            times = Counter(
                band for array in pictures.values() if len(array.flat) < array.shape[0] for band in array.flat
            )
            for band, number in sorted(times.items()):
                holders = [sample for sample, array in pictures.items() if band in array.flat]
                everywhere = len(holders) == len(pictures)
                yield warning(
                    f"band {band} of {name!r} is constant in "
                    + ("every sample" if everywhere else f"{number} of {len(pictures)} samples"),
                    evidence="" if everywhere else listed(holders),
                    remedy="leave this band out" if everywhere else "look at these files; a band was not written",
                )


def not_finite(subject: Subject) -> Iterator[Finding]:
    """NaN and infinite values, which make every loss NaN; except where the task says that NaN is not observed."""
    for reading in subject.readings:
        gaps = reading.examples.facts.get("gaps", ())
        for name, arrays in _by_name(reading).items():
            if name in gaps:
                continue
            bad = [f"{sample} ({array.not_finite} values)" for sample, array in arrays.items() if array.not_finite]
            if bad:
                yield error(
                    f"{len(bad)} samples have NaN or infinite values in {name!r}",
                    evidence=listed(bad),
                    remedy="fill them when reading (no-data is usual at the edge of a scene), or leave the files out",
                )


def mask_values(subject: Subject) -> Iterator[Finding]:
    """Values in a mask that are no class."""
    for reading in subject.readings:
        classes = reading.examples.facts.get("classes")
        if classes is None:
            continue
        allowed = {*range(len(classes)), reading.examples.facts.get("ignore")}
        for name, arrays in _by_name(reading).items():
            if not is_mask(name):
                continue
            wrong = {sample: set(array.values) - allowed for sample, array in arrays.items()}
            wrong = {sample: values for sample, values in wrong.items() if values}
            if wrong:
                values = sorted(set().union(*wrong.values()))
                yield error(
                    f"{len(wrong)} samples have values in {name!r} that are no class: {listed(values)}",
                    evidence=listed(list(wrong)),
                    remedy=f"the classes are 0 to {len(classes) - 1}; map the values when reading "
                    "(masks saved as 0 and 255, or as JPEG, are the usual reason)",
                )


def unmarked_masks(subject: Subject) -> Iterator[Finding]:
    """Masks in which nothing is ever marked."""
    for reading in subject.readings:
        for name, arrays in _by_name(reading).items():
            if is_mask(name) and arrays and len({array.values for array in arrays.values()}) == 1:
                values = next(iter(arrays.values())).values
                if len(values) == 1:
                    yield error(
                        f"{name!r} is {values[0]} everywhere in all {len(arrays)} samples: there is nothing to learn",
                        remedy="look at how masks are found and read",
                    )


def pairs(subject: Subject) -> Iterator[Finding]:
    """Masks of another height or width than their image."""
    for reading in subject.readings:
        unequal = []
        for name, arrays in reading.samples.arrays.items():
            sizes = {key: array.shape[-2:] for key, array in arrays.items() if len(array.shape) in (2, 3)}
            if any(is_mask(key) for key in sizes) and len(set(sizes.values())) > 1:
                unequal.append(f"{name}: " + ", ".join(f"{key} {h}x{w}" for key, (h, w) in sizes.items()))
        if unequal:
            yield error(
                f"{len(unequal)} samples have arrays of different height or width",
                evidence=listed(unequal),
                remedy="pair the files anew, or resize both when reading",
            )


def _is_flat(array: Array) -> bool:
    if len(array.shape) < 2:
        return False
    return array.spread < _NEARLY_FLAT if array.dtype == "uint8" else array.spread == 0.0


def _by_name(reading: Reading) -> Mapping[str, Mapping[str, Array]]:
    """{array: {sample: Array}}."""
    turned: dict[str, dict[str, Array]] = {}
    for sample, arrays in reading.samples.arrays.items():
        for name, array in arrays.items():
            turned.setdefault(name, {})[sample] = array
    return turned
