"""Look-ups in what summary.json holds."""

from __future__ import annotations

from robustgen.report.content import by_key, names_of, of_kind, stochastic

CONTENT = {
    "models": [
        {"name": "b", "stochastic": True, "evaluations": [{"name": "clean", "kind": "clean"}]},
        {
            "name": "a",
            "evaluations": [
                {"name": "pgd-2", "kind": "attack", "eps": 0.2},
                {"name": "clean", "kind": "clean"},
                {"name": "pgd-1", "kind": "attack", "eps": 0.1},
            ],
        },
        {"name": "c", "evaluations": [{"name": "pgd-1", "kind": "attack", "eps": 0.1}]},
    ],
    "metrics": [
        {"model": "a", "evaluation": "clean", "variant": "", "metric": "accuracy", "value": 0.5},
        {"model": "a", "evaluation": "clean", "variant": "temperature", "metric": "ece", "value": 0.1},
    ],
}


def test_evaluations_of_a_kind_are_each_given_once_whoever_has_them() -> None:
    assert [d["name"] for d in of_kind(CONTENT, "attack")] == ["pgd-2", "pgd-1"]
    assert [d["name"] for d in of_kind(CONTENT, "clean")] == ["clean"]
    assert of_kind(CONTENT, "ood") == []


def test_models_keep_the_order_of_the_report() -> None:
    assert names_of(CONTENT) == ["b", "a", "c"]
    assert stochastic(CONTENT) == {"b"}


def test_a_metric_is_found_by_all_that_names_it() -> None:
    numbers = by_key(CONTENT)
    assert numbers["a", "clean", "temperature", "ece"]["value"] == 0.1
    assert ("a", "clean", "", "ece") not in numbers
