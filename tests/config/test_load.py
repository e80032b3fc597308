from typing import Literal

import pytest
from pydantic import Field

from outlast.config.identity import differences, digest, identity
from outlast.config.load import keys, parse_yaml, read_config, resolve, to_yaml
from outlast.config.schema import Settings, TaskConfig, Training
from outlast.errors import ConfigError


class Data(Settings):
    size: int = Field(64, ge=16)
    mode: Literal["a", "b"] = "a"


class Config(TaskConfig):
    data: Data = Data()


PRESETS = {"cpu": Config, "long": lambda: Config(train=Training(epochs=99))}


def resolved(*overrides, file=None, preset="cpu"):
    return resolve(Config, PRESETS, preset, file=file, overrides=overrides)


def test_file_comes_over_preset_and_key_value_over_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train:\n  epochs: 5\n  seed: 4\ndata.size: 32\n")
    config, _ = resolved("train.epochs=7", file=path, preset="long")
    assert (config.train.epochs, config.train.seed, config.data.size, config.preset) == (7, 4, 32, "long")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".0001"])
def test_every_way_to_write_a_float_is_a_float(text):
    config, _ = resolved(f"train.learning_rate={text}")
    assert config.train.learning_rate == pytest.approx(1e-4, abs=0)


@pytest.mark.parametrize("word", ["no", "off", "yes", "on", "y"])
def test_words_stay_words(word):
    assert parse_yaml(word, "here") == word


def test_all_problems_are_reported_together_with_suggestions():
    with pytest.raises(ConfigError) as caught:
        resolved("train.epohcs=3", "data.size=4", "train.batch_size=many", "data.mode=c", "nonsense")
    text = str(caught.value)
    for part in (
        "train.epohcs",
        "'train.epochs'",
        "data.size=4",
        "train.batch_size='many'",
        "data.mode='c'",
        "nonsense",
    ):
        assert part in text


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match="Did you mean 'cpu'") as caught:
        resolved(preset="cpuu")
    assert "long" in str(caught.value)


def test_a_setting_without_effect_warns_only_if_the_user_set_it():
    _, warnings = resolved("train.plateau_factor=0.1")
    assert warnings == ["train.plateau_factor has no effect: train.schedule is 'cosine', not 'plateau'"]
    _, warnings = resolved("train.plateau_factor=0.1", "train.schedule=plateau")
    assert warnings == []
    assert resolved()[1] == []


@pytest.mark.parametrize("text", ["train: [1", "- a\n- b", "\tx"])
def test_a_file_that_is_no_configuration_is_refused_by_name(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        resolved(file=path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        resolved(file=tmp_path / "gone.yaml")


def test_the_written_configuration_reads_back_the_same(tmp_path):
    config, _ = resolved("train.learning_rate=1e-4", "train.ema_decay=0.99")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(Config, tmp_path / "config.yaml") == config


def test_micro_batch_larger_than_batch_is_one_sentence():
    with pytest.raises(ConfigError, match=r"train\.micro_batch=64 is larger"):
        resolved("train.micro_batch=64")


def test_identity_leaves_out_what_cannot_change_a_result():
    before, after = resolved()[0], resolved("loading.workers=3", "saving.every_minutes=1")[0]
    assert identity(before) == identity(after)
    other = resolved("train.epochs=31")[0]
    assert digest(identity(before)) != digest(identity(other))
    assert differences(identity(before), identity(other)) == ["train.epochs: 30 -> 31"]


def test_declared_changes_are_not_part_of_what_must_match():
    before, after = resolved()[0], resolved("train.micro_batch=8")[0]
    assert identity(before, ("must",)) == identity(after, ("must",))
    assert differences(identity(before, ("declared",)), identity(after, ("declared",))) == [
        "train.micro_batch: None -> 8"
    ]


def test_every_key_of_every_group_is_listed():
    listed = dict(keys(Config))
    assert {"train.epochs", "data.size", "loading.workers", "saving.keep", "preset"} <= set(listed)
