"""Post-hoc detectors: where a model's features are, and what pytorch-ood makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustgen import data, detectors, load_model, plan
from robustgen.classifiers.base import Classifier, PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.config import Protocol
from robustgen.detectors import DETECTORS, Detectors, find_layer
from robustgen.errors import UserError

HEAD = {"softmax-digits": 192, "jem-digits": 192, "pgd-at-digits": 256, "cdn-digits": 64}


def images(n: int = 16) -> Tensor:
    return data.load("digits").images[:n]


def small() -> PlainClassifier:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    return PlainClassifier(net, 10, (1, 8, 8)).eval()


# --- features ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEAD)
def test_the_features_of_the_zoo_are_what_the_last_layer_is_given(name: str) -> None:
    model = load_model(name)
    layer, head = find_layer(model, images())
    assert layer is not None
    assert (layer.in_features, layer.out_features, head) == (HEAD[name], 10, True)


def test_a_layer_that_sees_the_noise_level_alone_is_none_and_centres_are_no_head() -> None:
    assert find_layer(load_model("egc-digits"), images()) == (None, False)
    layer, head = find_layer(load_model("gmmc-digits"), images())
    assert layer is not None
    assert (layer.in_features, head) == (192, False)
    assert find_layer(PlainClassifier(nn.Flatten(), 64, (1, 8, 8)), images()) == (None, False)


# --- protocols ---------------------------------------------------------------------------------------


def protocol(names: list[str]) -> Protocol:
    return Protocol.model_validate({
        "name": "small", "version": 1, "summary": "x", "data": {"digits": {"foreign": ["letters"]}},
        "evaluations": [{"kind": "clean"}, {"kind": "ood", "detectors": names}],
    })  # fmt: skip


def test_an_unknown_detector_is_an_error_that_lists_them() -> None:
    with pytest.raises(UserError, match="did you mean mahalanobis"):
        plan.plan(protocol(["mahalanobs"]), data.load("digits"))


def test_without_the_library_detectors_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "library_version", lambda: None)
    planned = plan.plan(protocol(["knn"]), data.load("digits"))
    assert [r["evaluation"] for r in planned.refused] == ["detectors"]
    assert "robustgen[pytorch-ood]" in planned.refused[0]["reason"]
    assert all("detectors" not in e.detail for e in planned.evaluations)


# --- pytorch-ood -------------------------------------------------------------------------------------


def scored(names: list[str], model: Classifier, x: Tensor, batch: int = 16) -> dict[str, np.ndarray]:
    pytest.importorskip("pytorch_ood")
    scores = Detectors(names, lambda: data.load("digits", "train"))(FixedBatch(model, batch), x)
    return {name: values.numpy() for name, values in scores.items()}


def features(model: PlainClassifier, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.module[:3](x).double().numpy()  # type: ignore[index, operator]


def test_distances_by_hand() -> None:
    model, train, x = small(), data.load("digits", "train"), images(20)
    z, y, own = features(model, train.images), train.labels.numpy(), features(model, x)
    found = scored(["mahalanobis", "knn"], model, x)
    means = np.stack([z[y == k].mean(0) for k in range(10)])
    scatter = (z - means[y]).T @ (z - means[y]) + 1e-6 * np.eye(24)
    gaps = own[:, None] - means
    squares = np.einsum("nkd,de,nke->nk", gaps, np.linalg.pinv(scatter), gaps)
    assert found["mahalanobis"] == pytest.approx(-squares.min(1) / 2, rel=1e-2)
    bank, unit = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (z, own))
    distances = np.sort(np.linalg.norm(unit[:, None] - bank, axis=2), axis=1)
    assert found["knn"] == pytest.approx(-distances[:, 49], abs=1e-4)


def test_odin_and_gen_by_hand() -> None:
    model, x = small(), images(6)
    found = scored(["odin", "gen"], model, x)
    point = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(model(point) / 1000, model(point).argmax(1))
    (gradient,) = torch.autograd.grad(loss, point)
    with torch.no_grad():
        odin = (model(x - 0.0014 * gradient.sign()) / 1000).softmax(1).amax(1)
        p = model(x).softmax(1)
    assert found["odin"] == pytest.approx(odin.numpy(), abs=1e-6)
    powers = (p**0.1 * (1 - p) ** 0.1).sum(1).numpy()
    # its score is the mean or the sum over the classes: the order of pictures is what counts
    assert np.array_equal(np.argsort(found["gen"]), np.argsort(-powers))


def test_all_are_larger_for_digits_than_for_noise() -> None:
    model = load_model("softmax-digits").eval().requires_grad_(False)
    noise = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    own, foreign = (scored(list(DETECTORS), model, x) for x in (images(40), noise))
    assert set(own) == set(DETECTORS)
    assert all(np.isfinite(values).all() for values in own.values())
    better = {name for name in own if np.median(own[name]) > np.median(foreign[name])}
    # the order is not every detector's merit, but a wrong sign would show in all of them
    assert len(better) >= 10


def test_neither_chunks_nor_neighbours_change_a_bit() -> None:
    pytest.importorskip("pytorch_ood")
    model = FixedBatch(small(), 16)
    made = Detectors(list(DETECTORS), lambda: data.load("digits", "train"))
    whole, parts = made(model, images(32)), [made(model, part) for part in images(32).split([5, 16, 11])]
    assert len(whole) >= len(DETECTORS) - 1  # an untrained net predicts too few classes for she
    for name, values in whole.items():
        assert torch.equal(values, torch.cat([part[name] for part in parts])), name


def test_detectors_that_a_model_cannot_have_are_left_out() -> None:
    assert set(scored(list(DETECTORS), load_model("egc-digits"), images())) == {"odin", "gen", "klmatching"}
    with_features = {name for name, d in DETECTORS.items() if d.needs != "head"}
    assert set(scored(list(DETECTORS), load_model("gmmc-digits"), images())) == with_features


def test_a_covariance_of_more_features_than_pictures_is_not_inverted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("pytorch_ood")
    for n, fits in ((24 + 5, False), (24 + 60, True)):
        few = Detectors(["mahalanobis"], lambda n=n: data.load("digits", "train").slice(0, n))
        assert ("mahalanobis" in few(FixedBatch(small(), 16), images())) == fits
    assert "too few for a covariance" in caplog.text


def test_one_picture_at_a_time_has_the_same_detectors() -> None:
    pytest.importorskip("pytorch_ood")
    few = Detectors(["knn"], lambda: data.load("digits", "train").slice(0, 100))
    assert "knn" in few(FixedBatch(small(), 1), images())


def test_a_detector_that_cannot_be_fitted_is_left_out_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("pytorch_ood")
    few = Detectors(["knn"], lambda: data.load("digits", "train").slice(0, 30))
    assert few(FixedBatch(small(), 16), images()) == {}
    assert "the detector knn cannot be fitted: k=50 exceeds" in caplog.text
