"""YAML as validated types, and what is said of mistakes."""

from pathlib import Path

import pytest
from test_config import CARD, MINIMAL

from robustgen import strict
from robustgen.config import ModelCard, Protocol
from robustgen.errors import UserError
from robustgen.training.recipe import Recipe

RECIPE = CARD | {"objective": {"kind": "cross-entropy"}, "optimiser": {"lr": 1}, "steps": 1}
WHOLE = {Protocol: MINIMAL, ModelCard: CARD, Recipe: RECIPE}


def test_a_fraction_reads_as_its_value():
    protocol = Protocol.model_validate(MINIMAL)
    assert protocol.data["digits"].eps["linf"] == 8 / 255


@pytest.mark.parametrize("kind", [ModelCard, Recipe])
def test_a_fraction_among_options_reads_as_its_value_and_words_stay(kind):
    given = {
        "sigma": "8/255",
        "low": "1e-2",
        "in": ["1/2", {"a": "2E3"}],
        "words": ["none", "e", "n/a", "16"],
    }
    read = strict.validate(kind, WHOLE[kind] | {"options": given}, where="file.yaml")
    wanted = {"sigma": 8 / 255, "low": 0.01, "in": [0.5, {"a": 2000.0}], "words": given["words"]}
    assert read.options == wanted


@pytest.mark.parametrize("text", ["8/0", "eight", "1/2/3", "__import__('os')"])
def test_what_is_no_fraction_is_refused(text):
    content = MINIMAL | {"data": {"digits": {"eps": {"linf": text}}}}
    with pytest.raises(UserError, match="fraction such as 8/255"):
        strict.validate(Protocol, content, where="p.yaml")


@pytest.mark.parametrize("eps", [0, -0.1, "-8/255"])
def test_eps_must_be_positive(eps):
    with pytest.raises(UserError, match="greater than 0"):
        strict.validate(Protocol, MINIMAL | {"data": {"digits": {"eps": {"linf": eps}}}}, where="p.yaml")


def test_an_unknown_key_is_an_error_with_a_suggestion():
    with pytest.raises(UserError) as caught:
        strict.validate(Protocol, MINIMAL | {"sead": 1}, where="p.yaml")
    assert "no key named 'sead'" in str(caught.value)
    assert "did you mean seed" in str(caught.value)


def test_an_unknown_key_deep_inside_is_named_with_its_path():
    content = MINIMAL | {"evaluations": [{"kind": "attack", "attack": "pgd", "norm": "linf", "epps": [1]}]}
    with pytest.raises(UserError, match=r"evaluations\.0\.attack\.epps"):
        strict.validate(Protocol, content, where="p.yaml")


@pytest.mark.parametrize(
    ("kind", "change", "meant"),
    [
        (
            Protocol,
            {"evaluations": [{"kind": "attack", "attack": "pgd", "norm": "l2", "scale": [1]}]},
            "scales",
        ),
        (Protocol, {"data": {"any": {"sigmass": [1]}}}, "sigmas"),
        (Protocol, {"data": {"attack": {"epps": {}}}}, "eps"),
        (Recipe, {"optimiser": {"lr": 1, "warmup": 3}}, "warm_up"),
        (Recipe, {"objective": {"kind": "cross-entropy", "smoothing": 0.1}}, "label_smoothing"),
        (ModelCard, {"weights": {"sha": "0" * 64}}, "sha256"),
    ],
)
def test_an_unknown_key_deep_inside_is_an_error_with_a_suggestion(kind, change, meant):
    with pytest.raises(UserError, match="there is no key named") as caught:
        strict.validate(kind, WHOLE[kind] | change, where="file.yaml")
    assert caught.value.details["remedy"].startswith(f"did you mean {meant}")


@pytest.mark.parametrize(
    ("change", "what", "expected", "got"),
    [
        (
            {"evaluations": [{"kind": "attak"}]},
            "'evaluations.0' is not valid",
            "'clean', 'attack'",
            "'attak'",
        ),
        (
            {"evaluations": [{"norm": "l2"}]},
            "'evaluations.0' is not valid",
            "the key 'kind'",
            "the keys norm",
        ),
        (
            {"evaluations": [{"kind": "detected"}]},
            "'evaluations.0.detected.score' is missing",
            "this key",
            "nothing",
        ),
        ({"n": -1}, "'n' is not valid", "greater than 0", "-1"),
        ({"data": {"any": {"eps": {"l2": "x"}}}}, "'data.any.eps.l2'", "a number or a fraction", "'x'"),
    ],
)
def test_what_is_wrong_is_said_without_the_words_of_a_library(change, what, expected, got):
    with pytest.raises(UserError) as caught:
        strict.validate(Protocol, MINIMAL | change, where="p.yaml")
    assert what in caught.value.what
    assert expected in caught.value.details["expected"]
    assert caught.value.details["got"] == got
    for theirs in ("Input", "tag", "Extra", "expected: expected"):
        assert theirs not in str(caught.value)


def test_yaml_that_does_not_parse_names_file_and_line(tmp_path: Path):
    file = tmp_path / "p.yaml"
    file.write_text("name: p\nversion: [1\nseed: 2\n")
    with pytest.raises(UserError) as caught:
        strict.read(Protocol, file)
    assert f"{file}, line 3" in str(caught.value)


def test_yaml_runs_no_code(tmp_path: Path):
    file = tmp_path / "card.yaml"
    file.write_text("name: !!python/object/apply:os.system ['touch hacked']\n")
    with pytest.raises(UserError, match="not valid YAML"):
        strict.read(ModelCard, file)


def test_a_list_instead_of_keys_is_refused(tmp_path: Path):
    file = tmp_path / "p.yaml"
    file.write_text("- name\n")
    with pytest.raises(UserError, match="mapping of keys"):
        strict.read(Protocol, file)


def test_equal_content_has_equal_fingerprints_and_any_change_shows():
    a, b = Protocol.model_validate(MINIMAL), Protocol.model_validate(dict(reversed(MINIMAL.items())))
    assert a.fingerprint() == b.fingerprint()
    assert a.fingerprint() != Protocol.model_validate(MINIMAL | {"seed": 1}).fingerprint()


@pytest.mark.parametrize("text", ["1e999999999", "1e400", "9" * 5000, "1_0", "inf", "nan", "1/2e3"])
def test_numbers_without_bounds_are_refused_at_once(text):
    content = MINIMAL | {"data": {"digits": {"eps": {"linf": text}}}}
    with pytest.raises(UserError, match=r"fraction such as 8/255|finite number"):
        strict.validate(Protocol, content, where="p.yaml")


@pytest.mark.parametrize("key", ["n", "chunk"])
@pytest.mark.parametrize("count", [0, 10**20])
def test_what_counts_nothing_or_no_machine_counts_is_refused(key, count):
    with pytest.raises(UserError, match=r"greater than 0|less than 2147483648"):
        strict.validate(Protocol, MINIMAL | {key: count}, where="p.yaml")


@pytest.mark.parametrize(
    "change",
    [
        {"n": True}, {"seed": False}, {"data": {"any": {"sigmas": [True]}}},
        {"data": {"any": {"eps": {"linf": True}}}},
    ],
)  # fmt: skip
def test_yes_and_no_are_no_numbers(change):
    with pytest.raises(UserError, match="not yes or no"):
        strict.validate(Protocol, MINIMAL | change, where="p.yaml")
