import ast
import json
import re
from pathlib import Path

import pytest
from command import REPOSITORY, small_config
from ml_collections import ConfigDict

import corm_jax.config
from corm_jax.command_line import load_config
from corm_jax.config import (
    MAX_KEYS,
    base_config,
    check_config,
    flatten,
    number_of_keys,
    refuse_other_config,
)
from corm_jax.errors import UserError
from corm_jax.losses.presets import PRESETS
from corm_jax.recipes import VARIANTS

FILES = sorted((REPOSITORY / "configs").glob("*_*.py"))
FILES = [file for file in FILES if not file.name.startswith("sweep_")]  # nor masks.py: no training


def load(file: Path, argument: str) -> ConfigDict:
    return load_config(f"{file}:{argument}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_config_and_variant_is_valid_and_small(file: Path, variant: str) -> None:
    for objective in ("", *(f",{name}" for name in PRESETS)):
        config = load(file, variant + objective)
        if (objective, config.model.name) == (",cfce", "vit_small_patch16_224"):
            with pytest.raises(UserError, match="vit_small_patch16_224 does not have; set"):
                check_config(config)
            config.model.global_pool = "avg"  # the way out that the error names
        check_config(config)
        flat = flatten(config.to_dict())
        assert number_of_keys(config) <= MAX_KEYS
        expected = flatten(base_config(config.objective).to_dict())
        assert flat.keys() == expected.keys()
        json.dumps(config.to_dict())


def test_files_name_their_objective_and_model() -> None:
    for file in FILES:
        config = load(file, "demo")
        model, objective = file.stem.split("_")
        assert config.objective == objective
        assert config.model.name.startswith(model)
        assert f"python -m corm_jax.main --config=configs/{file.name}" in file.read_text()


def test_objectives_of_one_variant_differ_in_their_objective_alone() -> None:
    for variant in VARIANTS:
        for model in ("vit", "resnet"):
            erm, corm = (
                load(REPOSITORY / f"configs/{model}_{o}.py", variant).to_dict()
                for o in ("erm", "corm")
            )
            for config in (erm, corm):
                del config["objective"], config["terms"]
            assert erm == corm


def test_every_key_of_the_base_config_is_explained() -> None:
    source = Path(corm_jax.config.__file__).read_text()
    function = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "base_config"
    )
    lines = source.splitlines()[function.lineno : function.end_lineno]
    keys = [line for line in lines if re.match(r"    \w+(\.\w+)+ = (?!.*ConfigDict\(\)$)", line)]
    assert len(keys) >= 40
    self_explaining = {"train.steps", "data.train_split", "data.validation_split"}
    self_explaining |= {"data.crop_area_max", "train.label_smoothing"}
    for line in keys:
        name = line.split(" = ")[0].strip()
        if name not in self_explaining and "config.terms" not in name:
            assert "  # " in line, f"{name} has no comment"


def test_warmup_follows_the_number_of_steps_unless_it_is_given() -> None:
    config = base_config("erm")
    assert config.optimizer.warmup_steps == config.train.steps // 12
    config.train.steps = 60
    assert config.optimizer.warmup_steps == 5
    config.optimizer.warmup_steps = 7
    config.train.steps = 1200
    assert config.to_dict()["optimizer"]["warmup_steps"] == 7
    assert config.train.steps == 1200


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.steps", 0, "config.train.steps=0 must be >= 1"),
        ("optimizer.learning_rate", -1.0, "config.optimizer.learning_rate=-1.0 must be > 0"),
        ("optimizer.learning_rate", float("nan"), "config.optimizer.learning_rate=nan must be"),
        ("data.validation_share", 1.0, "config.data.validation_share=1.0 must be in (0, 0.99]"),
        ("data.crop_area_min", 2.0, "config.data.crop_area_min=2.0 must be in (0, 1]"),
        ("terms.noisy.probability", 1.5, "config.terms.noisy.probability=1.5 must be in [0, 1]"),
        ("terms.noisy.sigma", -0.1, "config.terms.noisy.sigma=-0.1 must be >= 0"),
        ("terms.noisy.term", "noisy_crossentropy", "(did you mean 'noisy_cross_entropy'?)"),
        ("terms.noisy.sigma_high", -0.1, "config.terms.noisy.sigma_high=-0.1 must be >= 0"),
        ("terms.noisy.initial_weight", -1.0, "config.terms.noisy.initial_weight=-1.0 must be >= 0"),
        ("terms.noisy.transition_steps", -1, "terms.noisy.transition_steps=-1 must be >= 0"),
        ("terms.noisy.patch", 0, "config.terms.noisy.patch=0 must be >= 1"),
        ("terms.noisy.region", "noncore", "(did you mean 'non_core'?)"),
        ("control", "shuffle", "unknown control 'shuffle' (did you mean 'shuffled'?)"),
        ("objective", "corn", "unknown objective 'corn' (did you mean 'corm'?)"),
        ("objective", "erm", "--config=configs/vit_corm.py:demo,erm"),
        ("model.name", "resnet-50", "unknown model 'resnet-50' (did you mean 'resnet50'?)"),
        ("model.dtype", "bfloat", "unknown dtype 'bfloat' (did you mean 'bfloat16'?)"),
        ("optimizer.name", "adam", "unknown optimizer 'adam' (did you mean 'adamw'?)"),
        ("optimizer.warmup_steps", 10**6, "is not below config.train.steps="),
        ("data.image_size", 50, "config.data.image_size=50 is not a multiple of the patch size 8"),
        ("checkpoint.best", "loss", "valid: clean, core, rcs"),
        ("watch.stall_minutes", -1.0, "config.watch.stall_minutes=-1.0 must be >= 0"),
        ("profile.steps", "10-15", "config.profile.steps='10-15' must be FIRST:LAST"),
        ("data.data_dir", "s3://bucket/data", "config.data.data_dir=s3://bucket/data is in an"),
        ("data.folder", "gs://bucket/data", "config.data.folder=gs://bucket/data is in an object"),
        ("data.masks", "gs://bucket/masks", "config.data.masks=gs://bucket/masks is in an object"),
        ("init", "s3://bucket/run", "config.init=s3://bucket/run is in an object store"),
    ],
)
def test_bad_value_is_named(key: str, value: object, message: str) -> None:
    config = base_config("corm_two_term")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as info:
        check_config(config)
    assert message in str(info.value)
    assert "\n" not in str(info.value)


def test_patches_that_do_not_divide_the_images_are_refused() -> None:
    config = base_config("corm")
    config.terms.noisy.update({"corruption": "patch_shuffle", "patch": 5})
    with pytest.raises(UserError, match=r"terms\.noisy\.patch=5 does not divide .*image_size=48"):
        check_config(config)


def test_workdir_of_another_config_is_refused_once_it_holds_something(tmp_path: Path) -> None:
    config = small_config("configs/vit_erm.py", tmp_path, train__steps=1200)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    config.train.steps = 7
    config.seed = 5
    refuse_other_config(config, tmp_path)  # stopped before its first checkpoint

    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(UserError) as info:
        refuse_other_config(config, tmp_path)
    message = str(info.value)
    assert "seed: 0 there, 5 now; train.steps: 1200 there, 7 now" in message
    assert "optimizer.learning_rate" not in message
    config.train.steps = 1200
    config.seed = 0
    refuse_other_config(config, tmp_path)
    config.profile.steps = "10:15"  # only looks on
    refuse_other_config(config, tmp_path)


def test_checkpoints_without_config_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "config.json"))):
        refuse_other_config(base_config("erm"), tmp_path)
