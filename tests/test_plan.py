"""What a protocol becomes for a data set: evaluations with what run.json says of them, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustgen import data, registry, strict
from robustgen.config import Protocol
from robustgen.errors import UserError
from robustgen.evaluation import Plan
from robustgen.plan import plan

PLAIN = {"name": "mine", "version": 1, "summary": "A trial."}


def planned(*evaluations: dict[str, Any], source: str = "digits", **settings: Any) -> Plan:
    content = {**PLAIN, "data": {"any": settings}, "evaluations": list(evaluations)}
    return plan(strict.validate(Protocol, content, where="test"), data.load(source))


def refused(found: Plan) -> dict[str, str]:
    return {refusal["evaluation"]: refusal["reason"] for refusal in found.refused}


def test_a_first_look_has_every_kind_and_names_that_say_what_was_done() -> None:
    found = plan(registry.load_protocol("quick"), data.load("digits"))
    details = {e.name: e.describe() for e in found.evaluations}
    assert details["clean"]["size"] == 400
    assert details["calibration"]["size"] == 200
    short = details["autoattack-i20-t5-q100-linf-0.15"]
    assert (short["eps"], short["cascade"]) == (0.15, ["apgd-ce", "apgd-t", "fab-t", "square"])
    assert details["gaussian_noise-3"]["severity"] == 3
    # energy is attacked on both sides, the label on the data's own pictures alone
    assert details["ood-letters-fixed-energy-linf-0.15"]["of"] == "ood-letters"
    assert "ood-letters-fixed-label-linf-0.15" not in details
    assert details["gradients"]["denoiser"] == "denoiser-digits"
    assert {"pgd-linf-0.0375", "pgd-l2-0.3", "pgd-linf-0.5"} <= details.keys()
    assert not found.refused


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"kind": "transfer", "norm": "linf"}, "transfer"),
        ({"kind": "fixed", "objective": "msp", "norm": "linf"}, "fixed-msp"),
        ({"kind": "detected", "score": "confidence", "norm": "linf"}, "detected-confidence"),
        ({"kind": "probes"}, "probes"),
        ({"kind": "climbs"}, "climbs"),
    ],
)
def test_without_an_eps_an_evaluation_is_refused_and_the_others_are_planned(spec, name) -> None:
    found = planned({"kind": "clean"}, spec)
    assert [e.name for e in found.evaluations] == ["clean", "calibration"]
    assert "no eps for" in refused(found)[name]


def test_an_attack_without_an_eps_is_a_mistake_of_the_protocol() -> None:
    with pytest.raises(UserError, match="no eps for linf") as raised:
        planned({"kind": "attack", "attack": "pgd", "norm": "linf"})
    assert "'attack' of the protocol 'mine'" in str(raised.value)


def test_calibration_pictures_of_another_shape_are_refused(tmp_path) -> None:
    file, digits = tmp_path / "two.npz", data.load("digits")
    images, labels = digits.images[:30].numpy(), digits.labels[:30].numpy()
    wide = {"calibration_images": images.repeat(2, axis=3), "calibration_labels": labels}
    np.savez(file, images=images, labels=labels, **wide)
    detected = {"kind": "detected", "score": "confidence", "norm": "linf"}
    found = planned({"kind": "clean"}, detected, source=str(file), eps={"linf": 0.1})
    assert [e.name for e in found.evaluations] == ["clean"]
    assert set(refused(found)) == {"calibration", "detected-confidence"}
    assert "(1, 8, 16)" in refused(found)["calibration"]


def test_what_the_data_do_not_have_is_refused_with_its_reason(tmp_path) -> None:
    file = tmp_path / "few.npz"
    digits = data.load("digits")
    np.savez(file, images=digits.images[:30].numpy(), labels=digits.labels[:30].numpy())
    found = planned(
        {"kind": "clean"}, {"kind": "detected", "score": "log_prob", "norm": "linf"},
        {"kind": "transfer", "norm": "linf"}, {"kind": "ood"}, {"kind": "gradients"},
        {"kind": "corruptions", "types": ["glass_blur"], "severities": [1]},
        source=str(file), eps={"linf": 0.1}, foreign=["letters", str(tmp_path / "gone.npz")],
    )  # fmt: skip
    assert [e.name for e in found.evaluations] == ["clean", "ood-letters"]
    assert set(refused(found)) >= {"calibration", "detected-log_prob", "transfer", "gradients", "glass_blur"}
    assert len(found.refused) == 6


def test_of_one_class_no_picture_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "one.npz"
    np.savez(file, images=data.load("digits").images[:30].numpy(), labels=np.zeros(30, np.int64))
    found = planned({"kind": "explained"}, source=str(file), denoiser="denoiser-digits", sigmas=[0.4])
    assert "one class" in refused(found)["explained"]


@pytest.mark.parametrize(
    "evaluation", [{"kind": "clean"}, {"kind": "detected", "score": "confidence", "norm": "linf"}]
)
def test_calibration_labels_of_no_test_class_are_a_mistake_before_anything_is_computed(
    tmp_path: Path, evaluation: dict[str, str]
) -> None:
    digits = data.load("digits")
    images, labels = digits.images[:30].numpy(), digits.labels[:30].numpy()
    arrays = {"calibration_images": images, "calibration_labels": labels + 1}
    np.savez(tmp_path / "x.npz", images=images, labels=labels, **arrays)
    with pytest.raises(UserError, match="the calibration split has classes that the test split lacks"):
        planned(evaluation, source=str(tmp_path / "x.npz"), eps={"linf": 0.1})


def test_models_of_one_network_call_attack_the_others_and_are_remembered() -> None:
    (found,) = planned({"kind": "transfer", "norm": "linf", "steps": 5}, eps={"linf": 0.1}).evaluations
    assert found.name == "transfer-s5-linf-0.1"
    assert {"softmax-digits", "pgd-at-digits"} <= found.detail["surrogates"].keys()
    assert "diffusion-digits" not in found.detail["surrogates"]
    assert found.detail["cascade"] == list(found.detail["surrogates"])


def test_a_detector_says_what_was_fitted_and_its_name_what_differs() -> None:
    usual, other = planned(
        {"kind": "detected", "score": "log_prob", "norm": "linf"},
        {"kind": "detected", "score": "log_prob", "norm": "l2", "eps": 0.5, "rejection": 0.1, "n_iter": 20},
        eps={"linf": 0.15},
    ).evaluations
    assert usual.name == "detected-log_prob-linf-0.15"
    assert other.name == "detected-log_prob-r0.1-i20-l2-0.5"
    assert usual.detail["calibration"] == data.load("digits", "calibration").fingerprint


def test_options_that_share_a_name_are_told_apart_by_what_is_stored_of_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def hit(model, x, y, threat, mode: str = 'a'):\n    return x\n")
    details = []
    for mode in ("B", "b"):
        spec = {"kind": "attack", "attack": f"{file}:hit", "norm": "linf", "options": {"mode": mode}}
        (found,) = planned(spec, eps={"linf": 0.1}).evaluations
        details.append(found.describe())
    assert details[0]["name"] == details[1]["name"]
    assert details[0] != details[1]


def test_what_is_fitted_on_the_training_split_remembers_it() -> None:
    train = data.load("digits", "train").fingerprint
    (gradients,) = planned({"kind": "gradients"}, sigmas=[0.4], denoiser="denoiser-digits").evaluations
    assert gradients.detail["wiener"] == train
    pytest.importorskip("pytorch_ood")
    scored = planned({"kind": "clean"}, {"kind": "ood", "detectors": ["knn"]}, foreign=["uniform-noise"])
    clean = next(e for e in scored.evaluations if e.kind == "clean")
    assert clean.detail["fitted_on"] == train


@pytest.mark.parametrize("kind", [{"kind": "attack", "attack": "pgd"}, {"kind": "transfer"}])
def test_an_eps_that_bounds_nothing_is_a_mistake(kind: dict[str, str]) -> None:
    with pytest.raises(UserError, match="bounds nothing"):
        planned({**kind, "norm": "linf"}, eps={"linf": 8.0})
    assert planned({**kind, "norm": "l2"}, eps={"l2": 8.0}).evaluations


def test_an_evaluation_twice_is_an_error() -> None:
    with pytest.raises(UserError, match="an evaluation twice"):
        planned({"kind": "clean"}, {"kind": "clean"})


def test_an_integral_over_few_levels_is_an_error() -> None:
    with pytest.raises(UserError, match="needs more"):
        planned({"kind": "efficiency"}, sweep=[0.1, 0.2], denoiser="denoiser-digits")


def test_a_reference_denoiser_that_is_none_is_refused_before_anything_is_computed() -> None:
    with pytest.raises(UserError, match="denoises nothing by itself"):
        planned({"kind": "gradients"}, sigmas=[0.1], denoiser="softmax-digits")


def test_the_reference_is_asked_for_some_classes_by_their_numbers_in_the_whole_set() -> None:
    explained = {"kind": "explained"}

    def numbers(source: str) -> list[int] | None:
        (found,) = planned(explained, source=source, sigmas=[0.1], denoiser="denoiser-digits").evaluations
        return found.detail.get("denoiser_classes")

    assert numbers("digits:2-9") == [*range(2, 10)]
    assert numbers("digits:0-7") is numbers("digits") is None
    other = planned(explained, source="digits:2-9", sigmas=[0.1], denoiser="denoiser-mnist")
    assert "does not know the classes" in refused(other)["explained"]
