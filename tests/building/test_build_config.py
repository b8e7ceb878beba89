import ast
import json
import re
from pathlib import Path

import pytest
from command import REPOSITORY

import corm_jax.masks.building.config as module
from corm_jax.command_line import load_config
from corm_jax.errors import UserError
from corm_jax.masks.building.config import VARIANTS, base_config, check_config


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_valid(variant: str) -> None:
    config = load_config(f"{REPOSITORY / 'configs/masks.py'}:{variant}")
    check_config(config)
    json.dumps(config.to_dict())


def test_imagenet_is_seen_as_salient_imagenet_saw_it() -> None:
    config = load_config(f"{REPOSITORY / 'configs/masks.py'}:imagenet")
    assert config.encoder.center_crop_share == 224 / 256
    assert (config.features.per_class, config.features.by) == (5, "prediction")
    assert (config.annotations.answers_per_pair, config.annotations.votes) == (5, 3)


def test_every_key_is_explained() -> None:
    source = Path(module.__file__).read_text()
    (function,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "base_config"
    )
    lines = source.splitlines()[function.lineno : function.end_lineno]
    keys = [n for n, x in enumerate(lines) if re.match(r"    \w+(\.\w+)+ = (?!.*ConfigDict)", x)]
    assert len(keys) >= 25
    for number in keys:
        explained = "  # " in lines[number] or lines[number - 1].startswith("    # ")
        assert explained or "_split = " in lines[number], lines[number]


def test_bad_value_is_named() -> None:
    config = base_config()
    config.data.bad_images = "skipp"
    with pytest.raises(UserError, match=r"config.data.bad_images 'skipp' \(did you mean 'skip'"):
        check_config(config)
    config = base_config()
    config.encoder.center_crop_share = 1.2
    with pytest.raises(UserError, match=r"config.encoder.center_crop_share=1.2 must be in \(0, 1"):
        check_config(config)
