from pathlib import Path

import pytest

from outlast.data.find import find_root
from outlast.errors import DataError


def looks_right(path: Path) -> bool:
    return (path / "labels.csv").is_file()


def put(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "labels.csv").touch()
    return path


def find(tmp_path: Path, given: Path | None = None, environ: dict[str, str] | None = None, **more: object) -> Path:
    places = {"kaggle_input": tmp_path / "kaggle", "here": tmp_path / "data"}
    return find_root("birds", given, looks_right, environ=environ or {}, **places, **more)  # type: ignore[arg-type]


def test_the_first_place_of_the_order_wins(tmp_path):
    local, kaggle = put(tmp_path / "data"), put(tmp_path / "kaggle" / "birds-2024")
    named, given = put(tmp_path / "named"), put(tmp_path / "given")
    assert find(tmp_path, given, {"OUTLAST_DATA": str(named)}) == given
    assert find(tmp_path, None, {"OUTLAST_DATA": str(named)}) == named
    assert find(tmp_path) == kaggle
    (kaggle / "labels.csv").unlink()
    assert find(tmp_path) == local


@pytest.mark.parametrize(
    "place", ["slug", "datasets/owner/slug", "competitions/slug", "slug/archive", "datasets/owner/slug/a/b"]
)
def test_both_kaggle_layouts_and_archives_in_one_folder_are_found(tmp_path, place):
    put(tmp_path / "kaggle" / "other" / "x" / "y" / "too-deep")
    root = put(tmp_path / "kaggle" / place)
    assert find(tmp_path) == root


@pytest.mark.parametrize("place", ["data", "data/birds", "data/birds/unpacked", "data/somewhere"])
def test_local_data_is_found(tmp_path, place):
    root = put(tmp_path / place)
    assert find(tmp_path) == root


def test_an_environment_folder_may_hold_several_tasks(tmp_path):
    root = put(tmp_path / "all" / "birds")
    assert find(tmp_path, None, {"OUTLAST_DATA": str(tmp_path / "all")}) == root


def test_several_candidates_are_listed_not_chosen_from(tmp_path):
    one, two = put(tmp_path / "kaggle" / "a"), put(tmp_path / "kaggle" / "datasets" / "me" / "b")
    with pytest.raises(DataError, match="2 folders could be") as caught:
        find(tmp_path)
    assert set(caught.value.details) == {str(one), str(two)} and "--data" in caught.value.hint


def test_no_data_says_where_it_looked_and_how_to_get_a_synthetic_set(tmp_path):
    with pytest.raises(DataError, match="no data found for birds") as caught:
        find(tmp_path)
    text = str(caught.value)
    for part in ("OUTLAST_DATA", str(tmp_path / "kaggle"), str(tmp_path / "data"), "--preset smoke", "--data"):
        assert part in text


def test_a_wrong_explicit_folder_is_an_error_even_if_other_data_exists(tmp_path):
    put(tmp_path / "data")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in {
        "nowhere": "doesn't exist",
        "file": "not a folder",
        "empty": "doesn't look like",
        "loop": "circular link",
    }.items():
        with pytest.raises(DataError, match=reason):
            find(tmp_path, tmp_path / name)
        with pytest.raises(DataError, match=reason):
            find(tmp_path, None, {"OUTLAST_DATA": str(tmp_path / name)})


def test_a_folder_one_too_high_is_answered_with_the_right_one(tmp_path):
    root = put(tmp_path / "given" / "inner")
    with pytest.raises(DataError) as caught:
        find(tmp_path, tmp_path / "given")
    assert str(root) in caught.value.hint


def test_a_lenient_check_of_the_named_folder_leaves_the_details_to_the_task(tmp_path):
    (tmp_path / "given").mkdir()
    assert find(tmp_path, tmp_path / "given", accepts=lambda path: True) == tmp_path / "given"


def test_link_loops_end(tmp_path):
    root = tmp_path / "kaggle" / "slug"
    root.mkdir(parents=True)
    (root / "again").symlink_to(tmp_path / "kaggle", target_is_directory=True)
    (root / "self").symlink_to(root / "self")
    with pytest.raises(DataError, match="no data found"):
        find(tmp_path)


def test_the_same_folder_through_two_links_is_one_candidate(tmp_path):
    root = put(tmp_path / "real")
    (tmp_path / "kaggle").mkdir()
    for name in ("a", "b"):
        (tmp_path / "kaggle" / name).symlink_to(root, target_is_directory=True)
    assert find(tmp_path).resolve() == root
