"""Training of a part of a model: a frozen trunk, and layers that learn at their own rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from stepping import BATCH, Run, make_batch, make_config, make_resnet, make_vit, one_device
from test_terms import Linear

from corm_jax.errors import UserError
from corm_jax.models import MODELS, create_model
from corm_jax.models.layers import depths, heads
from corm_jax.sharding import put_batch
from corm_jax.state import create_optimizer
from corm_jax.torch_weights import abstract_variables

HEADS = {
    "vit": (make_vit, {"head/kernel", "head/bias"}),
    "resnet": (make_resnet, {"fc/kernel", "fc/bias"}),
}


def head_config(objective="corm", **changes):
    return make_config(objective, trainable="head", name="adamw", weight_decay=0.1, **changes)


def changed(before, after):
    before, after = flatten_dict(before, sep="/"), flatten_dict(after, sep="/")
    assert before.keys() == after.keys()
    return {
        key
        for key in before
        if np.asarray(before[key]).tobytes() != np.asarray(after[key]).tobytes()
    }


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("objective", ["corm", "corm_hi"])
def test_frozen_trunk_keeps_every_bit_while_the_head_changes(family, objective):
    make, head = HEADS[family]
    run = Run(head_config(objective, ema=0.9), make(), one_device())
    first, *_, last = run.train(3)[0]
    assert changed(first.params, last.params) == head
    assert changed(first.batch_stats, last.batch_stats) == set()
    assert changed(first.ema["params"], last.ema["params"]) == head
    assert changed(first.ema["batch_stats"], last.ema["batch_stats"]) == set()
    assert len(jax.tree.leaves(last.batch_stats)) > 0 or family == "vit"


@pytest.mark.parametrize("family", HEADS)
def test_frozen_trunk_has_no_moments(family):
    make, head = HEADS[family]
    state = Run(head_config(), make(), one_device()).initial
    paths = [
        path for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if leaf.ndim
    ]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    assert len(names) == 2 * len(head)  # two moments
    assert {"/".join(name.split("/")[-2:]) for name in names} == head


def test_frozen_batch_norm_runs_by_its_averages():
    """One gradient step on the head equals that of a linear model on evaluation features."""
    config = make_config("erm", trainable="head", momentum=0.0, weight_decay=0.0, clip_norm=0.0)
    run = Run(config, make_resnet(), one_device())
    state, batch = run.initial, make_batch()
    rng = np.random.default_rng(0)
    averages = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32), state.batch_stats
    )
    state = state.replace(batch_stats=averages)
    after, _ = run.step(state, batch)
    images = jnp.asarray(batch["image"], jnp.float32) / 255
    logits, outputs = run.model.apply(state.variables(), images, train=False)
    features = np.asarray(outputs["pre_logits"], np.float64)
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    target = np.eye(3)[batch["label"]] * 0.9 + 0.1 / 3
    gradient = features.T @ (probabilities - target) / BATCH
    expected = np.asarray(state.params["fc"]["kernel"]) - 0.1 * gradient
    np.testing.assert_allclose(after.params["fc"]["kernel"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", HEADS)
def test_no_backward_pass_goes_through_a_frozen_trunk(family):
    make, _ = HEADS[family]

    def flops(config):
        run = Run(config, make(width=64), one_device())
        lowered = run.donating_step.lower(run.initial, put_batch(make_batch(), run.mesh))
        return lowered.compile().cost_analysis()["flops"]

    full, frozen = flops(make_config("erm")), flops(head_config("erm"))
    assert frozen < 0.45 * full  # a forward pass is a third of a step


def test_the_diagnosis_is_of_the_head_alone():
    run = Run(make_config("erm", trainable="head"), make_vit(), one_device())
    norms = run.norms(run.initial, make_batch())
    _, metrics = run.step(run.initial, make_batch())
    expected = pytest.approx(float(metrics["gradient_norm"]), rel=1e-5)
    assert float(norms["terms/clean/gradient_norm"]) == expected


def test_unknown_part_names_the_nearest():
    with pytest.raises(
        UserError, match=r"config\.optimizer\.trainable 'heads' \(did you mean 'head'"
    ):
        Run(make_config("erm", trainable="heads"), make_vit(), one_device())


def test_model_without_a_known_head_says_so():
    with pytest.raises(UserError, match="Linear does not say which of its parameters are its head"):
        heads(Linear())


@pytest.mark.parametrize(
    "name",
    [
        "resnet10_nano",
        "vit_nano_patch8_48",
        "densenet121",
        "deit_tiny_distilled_patch16_224",
        "convnext_tiny",
        "swin_tiny_patch4_window7_224",
        "RN50",
    ],
)
def test_heads_are_what_the_number_of_classes_changes(name):
    def shapes(classes):
        model = create_model(name, num_classes=classes, dtype="float32")
        return flatten_dict(abstract_variables(model, 48)["params"], sep="/")

    two, three = shapes(2), shapes(3)
    found = {key.split("/")[0] for key in two if two[key].shape != three[key].shape}
    model = create_model(name, num_classes=2, dtype="float32")
    assert found == {head for head in heads(model) if f"{head}/kernel" in two}


VIT = {
    "patch_embed": 0, "cls_token": 0, "pos_embed": 0, "block00": 1, "block01": 2, "block10": 3,
    "norm": 4, "head": 4,
}  # fmt: skip
RESNET = {"conv1": 0, "bn1": 0, "layer1_block0": 1, "layer1_block1": 2, "layer2_block0": 3, "fc": 4}
DENSENET = {
    "conv0": 0, "norm0": 0, "block1_layer1": 1, "block1_layer6": 1, "transition1_norm": 1,
    "transition1_conv": 1, "block2_layer1": 2, "norm5": 3, "classifier": 3,
}  # fmt: skip
CONVNEXT = {
    "stem_conv": 0, "stem_norm": 0, "stages0_block0": 1, "stages0_block1": 2, "stages1_norm": 3,
    "stages1_conv": 3, "stages1_block0": 3, "stages1_block10": 4, "head_norm": 5, "head": 5,
}  # fmt: skip
SWIN = {
    "patch_embed": 0, "patch_norm": 0, "layers0_block0": 1, "layers1_norm": 2,
    "layers1_reduction": 2, "layers1_block0": 2, "layers1_block1": 3, "norm": 4, "head": 4,
}  # fmt: skip
CLIP_VIT = {
    "image/conv1": 0, "image/ln_pre": 0, "image/class_embedding": 0, "image/block00": 1,
    "image/block11": 2, "image/ln_post": 3, "image/proj": 3, "head": 3,
}  # fmt: skip
CLIP_RESNET = {
    "image/conv1": 0, "image/bn3": 0, "image/layer1_block0": 1, "image/layer2_block0": 2,
    "image/attnpool": 3, "head": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_tiny_patch16_224", VIT),
        ("resnet18", RESNET),
        ("densenet121", DENSENET),
        ("convnext_tiny", CONVNEXT),
        ("swin_tiny_patch4_window7_224", SWIN),
        ("ViT-B-32", CLIP_VIT),
        ("RN50", CLIP_RESNET),
    ],
)
def test_depth_counts_blocks_from_the_stem_to_the_head(name, expected):
    model = create_model(name, num_classes=2, dtype="float32")
    assert depths(model, reversed(expected)) == expected
    paths = [f"{path}/kernel" for path in expected]
    assert list(depths(model, paths).values()) == list(expected.values())


def test_every_parameter_outside_stem_and_top_is_of_a_block():
    """So that a renamed module cannot slip into the top unseen."""
    for name, top in {
        "vit_tiny_patch16_224": {"norm", "head"},
        "resnet18": {"fc"},
        "densenet121": {"norm5", "classifier"},
        "convnext_tiny": {"head_norm", "head"},
        "swin_tiny_patch4_window7_224": {"norm", "head"},
        "ViT-B-32": {"image/ln_post", "image/proj", "head"},
        "RN50": {"image/attnpool", "head"},
    }.items():
        model = create_model(name, num_classes=2, dtype="float32")
        depth = depths(model, flatten_dict(abstract_variables(model, 224)["params"], sep="/"))
        highest = {path for path, found in depth.items() if found == max(depth.values())}
        assert {path for path in highest if not path.startswith(tuple(top))} == set()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_layer_decay_multiplies_the_steps_of_each_layer(optimizer):
    names = ("patch_embed", "block00", "norm", "head")
    factors = dict(zip(names, (0.25, 0.5, 1.0, 1.0), strict=True))
    params = {name: {"kernel": jnp.full((2,), 3.0)} for name in names}
    gradients = {name: {"kernel": jnp.array([0.5, -1.0])} for name in names}

    def updates(decay):
        config = make_config("erm", name=optimizer, weight_decay=0.1, layer_decay=decay)
        chain = create_optimizer(config, make_vit())
        with jax.numpy_dtype_promotion("standard"):  # Optax's own need
            return chain.update(gradients, chain.init(params), params)[0]

    plain, decayed = updates(1.0), updates(0.5)
    for name, factor in factors.items():
        assert abs(plain[name]["kernel"]).min() > 0
        np.testing.assert_allclose(
            decayed[name]["kernel"], factor * plain[name]["kernel"], rtol=1e-6
        )


def test_layer_decay_trains_with_the_real_parameters():
    run = Run(make_config("erm", layer_decay=0.5), make_resnet(), one_device())
    states, _ = run.train(1)
    plain, _ = Run(make_config("erm"), make_resnet(), one_device()).train(1)

    def moved(states, name):
        before, after = (state.params[name] for state in states[:2])
        return jax.tree.leaves(jax.tree.map(lambda a, b: a - b, after, before))

    for name, factor in (
        ("fc", 1.0),
        ("layer2_block0", 0.5),
        ("layer1_block0", 0.25),
        ("conv1", 0.125),
    ):
        for found, full in zip(moved(states, name), moved(plain, name), strict=True):
            np.testing.assert_allclose(found, factor * full, rtol=2e-3, atol=1e-7)


def test_every_model_is_of_a_family_with_a_head():
    for name in MODELS:
        assert heads(create_model(name, num_classes=2, dtype="float32"))
