"""CLIP's towers and zero-shot classifiers against open_clip's on random weights."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import assert_every_parameter_learns
from torch_models import import_parity, import_torchvision

from corm_jax.errors import UserError
from corm_jax.models import check_image_size
from corm_jax.models.clip import CLIP, CLIPS, VARIANTS, CLIPClassifier, quick_gelu
from corm_jax.models.clip_image import ResNetTower, VisionTower
from corm_jax.models.clip_text import TextTower
from corm_jax.models.gelu import gelu
from corm_jax.models.zero_shot import TEMPLATES, prompts, tokenize, zero_shot_classifier
from corm_jax.torch_weights import abstract_variables, to_flax, to_torch

FEATURES, CONTEXT, WORDS, SIZE = 12, 9, 50, 32
TEXT = {"width": 16, "heads": 2}
ACTIVATIONS = {False: gelu, True: quick_gelu}  # by open_clip's quick_gelu


def image_tower(kind, activation):
    if kind == "resnet":
        return partial(ResNetTower, features=FEATURES, stage_sizes=(1, 2, 1, 1), width=8, heads=4)
    return partial(
        VisionTower,
        features=FEATURES,
        patch_size=8,
        width=16,
        depth=2,
        heads=2,
        activation=activation,
    )


def our_clip(kind, quick=False):
    activation = ACTIVATIONS[quick]
    text = partial(
        TextTower,
        **TEXT,
        features=FEATURES,
        depth=2,
        activation=activation,
        vocabulary=WORDS,
        context_length=CONTEXT,
    )
    return CLIP(image_tower=image_tower(kind, activation), text_tower=text)


@pytest.fixture(scope="module")
def open_clip():
    import_torchvision()
    return pytest.importorskip("open_clip")


def their_clip(open_clip, kind, quick=False):
    layers, width, head_width = ((1, 2, 1, 1), 8, 64) if kind == "resnet" else (2, 16, 8)
    patch_size = None if kind == "resnet" else 8
    vision = open_clip.CLIPVisionCfg(
        layers=layers, width=width, head_width=head_width, patch_size=patch_size, image_size=SIZE
    )
    text = open_clip.CLIPTextCfg(context_length=CONTEXT, vocab_size=WORDS, layers=2, **TEXT)
    module = open_clip.CLIP(FEATURES, vision, text, quick_gelu=quick)
    return import_parity().randomize(module)


def toy_tokenize(texts):
    """Returns tokens: a start, a word's by its length, the end, and zeros."""
    tokens = np.zeros((len(texts), CONTEXT), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        words = [1, *(1 + len(word) for word in text.split()), WORDS - 1][:CONTEXT]
        row[: len(words)] = words
        row[len(words) - 1] = WORDS - 1
    return tokens


def images_of(statistics, batch=3):
    """Returns (images in [0, 1], the same normalised for PyTorch)."""
    import torch

    shape = (batch, SIZE, SIZE, 3)
    images = np.random.default_rng(1).uniform(size=shape).astype(np.float32)
    normalized = (images - np.float32(statistics.mean)) / np.float32(statistics.std)
    return images, torch.from_numpy(normalized.transpose(0, 3, 1, 2))


KINDS = pytest.mark.parametrize("kind", ["resnet", "vit"])


@KINDS
@pytest.mark.parametrize("quick", [False, True])
def test_similarities_of_images_and_texts_are_open_clips_both_ways(open_clip, kind, quick):
    import torch

    parity = import_parity()
    ours, theirs = our_clip(kind, quick), their_clip(open_clip, kind, quick)
    state = parity.state_of(theirs)
    variables = to_flax(ours, state, image_size=SIZE)
    assert parity.same_bits(to_torch(ours, variables, library="open_clip"), state)
    images, normalized = images_of(ours.statistics)
    tokens = toy_tokenize(["a photo of a cat", "", "two words"])
    run = jax.jit(ours.apply, static_argnames="train")

    def theirs_now():
        with torch.no_grad():
            return theirs.get_logits(normalized, torch.from_numpy(tokens).long())[0].numpy()

    found = run(variables, images, tokens, train=False)
    assert parity.relative_error(found, theirs_now()) < 1e-4
    before = theirs_now()
    variables = jax.tree.map(lambda leaf: leaf[..., ::-1].copy() if leaf.ndim else leaf, variables)
    given = to_torch(ours, variables, library="open_clip")
    theirs.load_state_dict({k: torch.from_numpy(given.get(k, v)) for k, v in state.items()})
    found = run(variables, images, tokens, train=False)
    assert parity.relative_error(found, theirs_now()) < 1e-4
    assert parity.relative_error(before, theirs_now()) > 0.1


@KINDS
def test_classifiers_logits_and_input_gradients_are_open_clips(open_clip, kind):
    parity = import_parity()
    ours = CLIPClassifier(num_classes=5, image_tower=image_tower(kind, gelu))
    theirs = parity.ClipClassifier(their_clip(open_clip, kind).visual, 5)
    found = parity.compare(ours, theirs, library="open_clip", image_size=SIZE)
    assert found.logits < 1e-4
    assert found.gradient < 1e-3
    assert found.exact


@KINDS
def test_zero_shot_logits_are_open_clips(open_clip, kind):
    import torch

    ours, theirs = our_clip(kind), their_clip(open_clip, kind)
    names = ["cat", "great white shark", "hen", "paddle"]
    model, variables = zero_shot_classifier(
        ours,
        to_flax(ours, import_parity().state_of(theirs), image_size=SIZE),
        names,
        templates=TEMPLATES,
        tokenize=toy_tokenize,
    )
    images, normalized = images_of(ours.statistics)
    logits, _ = jax.jit(model.apply, static_argnames="train")(variables, images, train=False)
    head = open_clip.build_zero_shot_classifier(
        theirs, lambda texts: torch.from_numpy(toy_tokenize(texts)).long(), names, TEMPLATES
    )
    with torch.no_grad():
        features = theirs.encode_image(normalized, normalize=True)
        expected = (theirs.logit_scale.exp() * features @ head).numpy()
    assert logits.dtype == jnp.float32
    assert import_parity().relative_error(logits, expected) < 1e-4
    shapes = abstract_variables(model, SIZE)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_underscores_in_names_of_classes_are_spaces():
    assert prompts("great_white", ["a {}.", "{}"]) == ["a great white.", "great white"]
    assert TEMPLATES[0] == "a photo of a {}."
    for template in TEMPLATES:
        assert prompts("x", [template]) == [template.format("x")]


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_templates_without_one_place_for_the_class_are_refused(template):
    with pytest.raises(UserError, match=f"template '{template}' must have one {{}}"):
        prompts("cat", ["a {}", template])


def test_without_templates_or_classes_there_is_no_zero_shot_classifier():
    with pytest.raises(UserError, match="no prompt template is given"):
        prompts("cat", [])
    with pytest.raises(UserError, match="needs the names of its classes"):
        zero_shot_classifier(our_clip("vit"), {}, [], templates=TEMPLATES, tokenize=toy_tokenize)


def test_tokens_are_clips(open_clip):
    tokens = tokenize(["a photo of a cat.", "A  PHOTO of a cat.", "x " * 100])
    assert (tokens.shape, tokens.dtype) == ((3, 77), np.int32)
    np.testing.assert_array_equal(
        tokens[0], [49406, 320, 1125, 539, 320, 2368, 269, 49407] + [0] * 69
    )
    np.testing.assert_array_equal(tokens[1], tokens[0])
    assert tokens[2, -1] == 49407


def test_without_open_clip_its_tokenizer_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'corm_jax\[clip\]'"):
        tokenize(["a cat"])


def test_what_follows_the_end_token_does_not_matter():
    model = our_clip("vit")
    shapes = abstract_variables(model, SIZE)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    tokens = toy_tokenize(["one two three", "one two three", "one three"])
    tokens[1, 6:] = 7
    features = model.apply(variables, tokens, method=CLIP.encode_text)
    np.testing.assert_allclose(features[0], features[1], rtol=1e-5, atol=1e-6)
    assert abs(features[0] - features[2]).max() > 0.01
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)


@KINDS
def test_every_parameter_learns(kind):
    model = CLIPClassifier(num_classes=3, image_tower=image_tower(kind, quick_gelu))
    assert_every_parameter_learns(model, SIZE)


@pytest.mark.parametrize(
    ("name", "count"),  # as open_clip's docs/model_profile.csv gives them
    [
        ("RN50", 102_007_137),
        ("RN101", 119_688_033),
        ("ViT-B-32", 151_277_313),
        ("ViT-B-16", 149_620_737),
        ("ViT-L-14", 427_616_513),
    ],
)
def test_parameter_count_is_open_clips(name, count):
    assert list(CLIPS) == list(VARIANTS)
    for known in (name, f"{name}-quickgelu"):
        model = CLIPS[known]()
        params = abstract_variables(model, 224)["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
        activation = quick_gelu if known.endswith("quickgelu") else gelu
        assert model.text_tower.keywords["activation"] is activation
        assert model.image_tower.keywords.get("activation", activation) is activation


def test_sizes_of_images_are_checked_by_the_tower():
    check_image_size("RN50", 33)
    check_image_size("ViT-L-14", 28)
    with pytest.raises(UserError, match="image_size=31 is too small for RN50"):
        check_image_size("RN50", 31)
    with pytest.raises(UserError, match="image_size=32 is not a multiple of the patch size 14"):
        check_image_size("ViT-L-14", 32)
