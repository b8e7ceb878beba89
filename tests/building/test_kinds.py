from pathlib import Path

import pytest

from corm_jax.errors import UserError
from corm_jax.masks.annotations import read_annotations
from corm_jax.masks.building.config import build_config
from corm_jax.masks.building.kinds import feature_weights, write_answers
from corm_jax.masks.building.selection import Feature

NAMES = ("otter", "penguin")
FEATURES = [Feature(0, 7, 1, 2.0), Feature(0, 3, 2, 1.0), Feature(1, 7, 1, 2.0)]


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.csv"
    given = ["main_object", "background", "separate_object"]
    write_answers(path, FEATURES, given, NAMES, workers=5, reason="played, in a test")
    return path


def test_written_answers_are_read_and_weigh(answers: Path) -> None:
    votes = read_annotations(answers)
    assert votes["penguin", 7].answers == ("separate_object",) * 5
    assert votes["otter", 3].class_index == 0
    weights = feature_weights(build_config("demo"), FEATURES, NAMES, answers)
    assert weights == {(0, 7): (1.0, 0.0), (0, 3): (0.0, 1.0), (1, 7): (0.0, 1.0)}


def test_majority_and_shares_of_divided_answers(answers: Path) -> None:
    lines = answers.read_text().splitlines()
    lines[4:6] = [line.replace("main_object", "background") for line in lines[4:6]]  # 3 to 2
    answers.write_text("\n".join(lines))
    config = build_config("demo")
    assert feature_weights(config, FEATURES, NAMES, answers)[0, 7] == (1.0, 0.0)
    config.annotations.votes = 2
    assert feature_weights(config, FEATURES, NAMES, answers)[0, 7] == (0.0, 1.0)
    config.annotations.weighted = True
    assert feature_weights(config, FEATURES, NAMES, answers)[0, 7] == pytest.approx((0.6, 0.4))


def test_missing_annotations_are_an_error_unless_all_shall_be_core() -> None:
    config = build_config("imagenet")
    with pytest.raises(UserError, match=r"annotate them .*--config.annotations.path=CSV"):
        feature_weights(config, FEATURES, NAMES, None)
    config.annotations.without = "core"
    assert set(feature_weights(config, FEATURES, NAMES, None).values()) == {(1.0, 0.0)}


def test_feature_that_nobody_was_asked_about_is_named(answers: Path) -> None:
    features = [*FEATURES, Feature(1, 5, 2, 1.0)]
    with pytest.raises(UserError, match=r"answers.csv: feature 5 of class penguin has no answers"):
        feature_weights(build_config("demo"), features, NAMES, answers)
