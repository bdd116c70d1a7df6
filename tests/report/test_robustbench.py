"""RobustBench's JSON: its keys and its text, the lowest figure as external, and nothing made up."""

import json

import pytest

from robustgen.disk import write_json
from robustgen.errors import UserError
from robustgen.report.robustbench import export

# The keys and types of model_info/cifar10/Linf/Carmon2019Unlabeled.json in RobustBench.
CARMON = {
    "link": str,
    "name": str,
    "authors": str,
    "additional_data": bool,
    "number_forward_passes": int,
    "dataset": str,
    "venue": str,
    "architecture": str,
    "eps": str,
    "clean_acc": str,
    "reported": str,
    "autoattack_acc": str,
}


def metric(evaluation, name, value, variant="", n=200):
    return {
        "model": "net",
        "evaluation": evaluation,
        "variant": variant,
        "metric": name,
        "value": value,
        "n": n,
    }


def attack(name, norm, eps):
    return {"name": f"{name}-{norm}", "kind": "attack", "attack": name, "norm": norm, "eps": eps}


@pytest.fixture
def content():
    return {
        "robustgen": "0.1.0",
        "data": {"name": "cifar10", "size": 8000, "provenance": "A JPEG copy."},
        "protocol": {"name": "mine", "version": 3},
        "n": None,
        "models": [
            {
                "name": "net",
                "path": "runs/net",
                "family": "cdn",
                "parameters": 2_500_000,
                "evaluations": [
                    attack("autoattack", "linf", 8 / 255),
                    attack("autoattack", "l2", 0.5),
                    attack("autoattack-q500", "linf", 4 / 255),
                    attack("pgd", "linf", 8 / 255),
                ],
            }
        ],
        "metrics": [
            metric("clean", "accuracy", 0.8969),
            metric("autoattack-linf", "robust_accuracy", 0.5953),
            metric("autoattack-linf", "robust_accuracy", 0.7, "apgd-ce"),
            metric("worst-linf-8-255", "robust_accuracy", 0.59),
            metric("autoattack-l2", "robust_accuracy", 0.4),
            metric("worst-l2-0.5", "robust_accuracy", 0.4),
        ],
        "flags": [
            {
                "model": "net",
                "evaluation": "autoattack-l2",
                "flag": "masked_gradients",
                "severity": "warning",
            },
            {"model": "net", "evaluation": "autoattack-linf", "flag": "audit", "severity": "info"},
        ],
    }


def exported(folder, content):
    write_json(folder / "summary.json", content)
    return {str(p.relative_to(folder / "robustbench")): json.loads(p.read_text()) for p in export(folder)}


def test_it_has_robustbenchs_keys_and_text(tmp_path, content):
    found = exported(tmp_path, content)
    assert set(found) == {"cifar10/Linf/net.json", "cifar10/L2/net.json"}  # no smaller budget, no PGD
    linf = found["cifar10/Linf/net.json"]
    assert {key: type(linf[key]) for key in CARMON} == CARMON
    assert (linf["clean_acc"], linf["autoattack_acc"], linf["eps"]) == ("89.69", "59.53", "8/255")
    assert "200 of 8000" in linf["footnote"]
    assert "JPEG" in linf["footnote"]


def test_nothing_is_said_of_what_others_trained_on(tmp_path, content):
    content["models"][0]["family"] = "custom"
    assert exported(tmp_path, content)["cifar10/Linf/net.json"]["additional_data"] is None


def test_external_is_the_worst_case_where_it_is_lower(tmp_path, content):
    found = exported(tmp_path, content)
    assert found["cifar10/Linf/net.json"]["external"] == "59.00"
    assert found["cifar10/L2/net.json"]["external"] == ""
    assert found["cifar10/Linf/net.json"]["unreliable"] is False
    assert found["cifar10/L2/net.json"]["unreliable"] is True


def test_a_second_eps_has_a_file_of_its_own(tmp_path, content):
    content["models"][0]["evaluations"][2]["attack"] = "autoattack"  # at 4/255
    content["metrics"].append(metric("autoattack-q500-linf", "robust_accuracy", 0.7))
    found = exported(tmp_path, content)
    assert found["cifar10/Linf/net.json"]["autoattack_acc"] == "59.53"
    assert found["cifar10/Linf/net-4-255.json"]["autoattack_acc"] == "70.00"


@pytest.mark.parametrize("beside", [True, False])
def test_the_thorough_run_is_autoattack_too_and_stands_for_the_other(tmp_path, content, beside):
    thorough = attack("autoattack-thorough", "linf", 8 / 255)
    evaluations = content["models"][0]["evaluations"]
    content["models"][0]["evaluations"] = [thorough, *evaluations] if beside else [thorough]
    content["metrics"].append(metric(thorough["name"], "robust_accuracy", 0.592))
    found = exported(tmp_path, content)
    assert found["cifar10/Linf/net.json"]["autoattack_acc"] == "59.20"
    assert len(found) == 1 + beside  # in L2


def test_corruptions_need_all_75_cells(tmp_path, content):
    types = [f"type{k}" for k in range(15)]
    cells = [
        {"name": f"{t}-{s}", "kind": "corruption", "type": t, "severity": s}
        for t in types
        for s in range(1, 6)
    ]
    content["metrics"].append(metric("corruptions", "corruption_accuracy", 0.734, "all"))
    content["models"][0]["evaluations"] += cells[:-1]
    assert "cifar10/corruptions/net.json" not in exported(tmp_path, content)
    content["models"][0]["evaluations"].append(cells[-1])
    entry = exported(tmp_path, content)["cifar10/corruptions/net.json"]
    assert (entry["eps"], entry["corruptions_acc"]) == (None, "73.40")


def test_a_report_without_any_of_it_says_so(tmp_path, content):
    content["models"][0]["evaluations"] = []
    with pytest.raises(UserError, match="this report has nothing that RobustBench lists"):
        exported(tmp_path, content)
