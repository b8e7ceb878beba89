"""Objectives as config data: what the presets are, and which data is refused."""

import pytest

from corm_jax.errors import UserError
from corm_jax.losses.presets import PRESETS, check_objective, preset
from corm_jax.losses.terms import build

NOISY = {key: value for key, value in preset("corm")["noisy"].items() if key != "without_mask"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_builds_and_passes_its_own_check(name):
    terms = preset(name)
    built = build(terms)
    assert {label: weight for label, (weight, _) in built.items()} == {
        label: term["weight"] for label, term in terms.items()
    }
    check_objective(name, terms)


def test_published_presets_have_the_published_numbers():
    constant = {"weight": 1.0, "initial_weight": 0.0, "transition_steps": 0}
    assert preset("erm") == {"clean": {"term": "cross_entropy", **constant}}
    hard_imagenet = preset("corm_hi")
    assert {term["term"] for term in hard_imagenet.values()} == {
        "noisy_cross_entropy",
        "input_gradient",
    }
    for term in hard_imagenet.values():
        assert (term["sigma"], term["probability"]) == (0.25, 0.5)
    two_term = preset("corm_two_term")
    assert [term["term"] for term in two_term.values()] == ["cross_entropy", "noisy_cross_entropy"]
    assert (two_term["noisy"]["probability"], two_term["noisy"]["weight"]) == (1.0, 1.0)


def test_other_presets_add_one_term_to_cross_entropy_outside_the_core():
    assert preset("noise")["noisy"]["region"] == "whole"
    assert preset("pgd")["attack"]["region"] == "non_core"
    for name in ("pgd", "background_swap", "corm_plus", "consistency"):
        assert preset(name)["clean"] == preset("erm")["clean"]


def test_a_changed_preset_does_not_change_the_next():
    preset("corm")["clean"]["weight"] = 7.0
    assert preset("corm")["clean"]["weight"] == 1.0


def test_unknown_objective_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'corm_two_term'"):
        preset("corm_twoterm")


def test_weights_and_parameters_may_change_but_not_the_objective():
    terms = preset("corm_hi")
    terms["noisy"] |= {"weight": 0.5, "sigma": 0.1}
    check_objective("corm_hi", terms)
    with pytest.raises(UserError, match=r"config\.objective is 'erm' .*:demo,erm"):
        check_objective("erm", terms)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, r"config\.terms is empty"),
        (
            {"a": {**preset("erm")["clean"], "term": "cross_entropi"}},
            r"config\.terms\.a\.term.*did you mean 'cross_entropy'",
        ),
        (
            {"a": {**NOISY, "without_mask": "clean", "sigmma": 1.0}},
            r"config\.terms\.a\.sigmma: .*no such parameter \(did you mean 'sigma'\?\)",
        ),
        ({"a": NOISY}, r"config\.terms\.a\.without_mask is missing"),
        (
            {"a": {"term": "cross_entropy", "initial_weight": 0.0, "transition_steps": 0}},
            r"config\.terms\.a\.weight is missing",
        ),
        (
            {"a": {"term": "cross_entropy", "weight": 1.0, "initial_weight": 0.0}},
            r"config\.terms\.a\.transition_steps is missing",
        ),
        (
            {"a": {**NOISY, "without_mask": "zero", "corruption": "gray"}},
            r"config\.terms\.a\.corruption.*did you mean 'grey'",
        ),
        (
            {"a": {**preset("pgd")["attack"], "norm": "l_2"}},
            r"config\.terms\.a\.norm.*did you mean 'l2'",
        ),
        (
            {"a": {**NOISY, "without_mask": "zeros"}},
            r"config\.terms\.a\.without_mask.*did you mean 'zero'",
        ),
    ],
)
def test_terms_that_cannot_be_built_are_refused_by_key(terms, message):
    with pytest.raises(UserError, match=message):
        build(terms)


def test_weights_change_linearly_over_the_transition_alone():
    terms = preset("corm")
    terms["noisy"] |= {"weight": 3.0, "initial_weight": 1.0, "transition_steps": 4}
    terms["clean"] |= {"initial_weight": 9.0}  # unused without a transition
    (clean, _), (noisy, _) = build(terms).values()
    assert clean == 1.0
    assert [float(noisy(step)) for step in (0, 1, 2, 4, 99)] == [1.0, 1.5, 2.0, 3.0, 3.0]
