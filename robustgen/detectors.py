"""Post-hoc OOD detectors from pytorch-ood (Kirchheim et al. 2022), by name.

They are fitted on the training split. The features of a model are the input of its last linear layer;
detectors that modify them and recompute the logits need that layer's output to be the logits.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robustgen.classifiers.base import Classifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.data import Dataset
from robustgen.errors import unknown_name
from robustgen.scores import Score

FIT_SAMPLES = 10_000  # at most, evenly spaced over the split, which may be sorted by class
Needs = Literal["pictures", "logits", "features", "head"]
OutlierScore = Callable[[Tensor], Tensor]


class FitData(NamedTuple):
    """What a detector is fitted on: features (n, d), logits (n, classes) and labels (n,) of training images,
    on the CPU; a copy of the linear ``layer`` that takes the features; and the model itself."""

    features: Tensor
    logits: Tensor
    labels: Tensor
    layer: nn.Linear | None
    model: FixedBatch

    @property
    def head(self) -> nn.Linear:
        """``layer``, of a model that has one."""
        assert self.layer is not None
        return self.layer


Fit = Callable[[Any, FitData], OutlierScore]
"""(the module pytorch_ood.detector, data) to the outlier score of the fitted detector."""


@dataclass(frozen=True)
class Detector:
    """``fit`` returns the outlier scores (batch,), larger for OOD, as a function of a batch of what the
    detector ``needs``. ``head``: features, whose layer must give the logits."""

    needs: Needs
    fit: Fit
    summary: str


def _on_features(name: str) -> Fit:
    return lambda ood, data: (
        getattr(ood, name)(None).fit_features(data.features, data.labels).predict_features
    )


def _by_covariance(name: str) -> Fit:
    def fit(ood: Any, data: FitData) -> OutlierScore:
        freedom, d = len(data.labels) - len(data.labels.unique()), data.features.shape[1]
        if freedom < d:  # the library would invert a singular matrix: negative distances
            raise ValueError(f"{len(data.labels)} pictures are too few for a covariance of {d} features")
        return _on_features(name)(ood, data)

    return fit


def _on_head(make: Callable[[Any, nn.Linear], Any]) -> Fit:
    return lambda ood, data: make(ood, data.head).fit_features(data.features, data.labels).predict_features


def _react(ood: Any, data: FitData) -> OutlierScore:
    fitted = ood.ReAct(None, _of_maps(data.head)).fit_feature_maps(_maps(data.features), data.labels)
    return lambda features: fitted.predict_feature_maps(_maps(features))


def _activation_shaping(name: str) -> Fit:
    def fit(ood: Any, data: FitData) -> OutlierScore:
        detector = getattr(ood, name)(None, _of_maps(data.head))
        return lambda features: detector.predict_feature_maps(_maps(features))

    return fit


def _weights(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias if layer.bias is not None else torch.zeros(layer.out_features)


def _maps(features: Tensor) -> Tensor:
    """Features (batch, d) as feature maps of one pixel."""
    return features[:, :, None, None]


def _of_maps(layer: nn.Linear) -> OutlierScore:
    """The layer as a function of feature maps of one pixel."""
    return lambda maps: layer(maps.flatten(1))


DETECTORS: dict[str, Detector] = {
    "odin": Detector(
        "pictures", lambda ood, data: ood.ODIN(data.model.logits).predict, "softmax after a step towards it"
    ),
    "gen": Detector("logits", lambda ood, data: ood.GEN.score, "generalised entropy of the softmax"),
    "klmatching": Detector(
        "logits",
        lambda ood, data: ood.KLMatching(None).fit_logits(data.logits, data.labels).predict_logits,
        "divergence from the classes' mean softmax",
    ),
    "knn": Detector("features", _on_features("KNN"), "distance to the 50th nearest training feature"),
    "mahalanobis": Detector(
        "features", _by_covariance("Mahalanobis"), "distance to the nearest class's mean"
    ),
    "rmd": Detector("features", _by_covariance("RMD"), "the same, less the distance to the mean of all"),
    # half the features: what its paper takes for fewer than 768
    "vim": Detector(
        "head",
        _on_head(lambda ood, layer: ood.ViM(None, layer.in_features // 2, *_weights(layer))),
        "the features' residual as a logit of its own",
    ),
    "dice": Detector(
        "head",
        _on_head(lambda ood, layer: ood.DICE(None, *_weights(layer), p=0.9)),
        "energy by the used weights",
    ),
    "she": Detector(
        "head", _on_head(lambda ood, layer: ood.SHE(None, layer)), "likeness to the predicted class's mean"
    ),
    "react": Detector("head", _react, "energy of clipped features"),
    "ash": Detector("head", _activation_shaping("ASH"), "energy of pruned and scaled features"),
    "scale": Detector("head", _activation_shaping("SCALE"), "energy of scaled features"),
}
"""By the name in a protocol, each with its paper's settings as in pytorch-ood."""


def library_version() -> str | None:
    """The version of pytorch-ood; None if it is not installed."""
    try:
        return version("pytorch-ood")
    except PackageNotFoundError:
        return None


def check(names: Sequence[str]) -> None:
    """UnknownNameError unless all are names of DETECTORS."""
    for name in names:
        if name not in DETECTORS:
            raise unknown_name("detector", name, DETECTORS, where="the protocol's detectors")


class Detectors(Score):
    """Detectors by name, fitted on up to FIT_SAMPLES images of ``train()`` when a model is first scored.

    A score is the negative of pytorch-ood's outlier score. Detectors whose ``needs`` the model does not have,
    or which cannot be fitted, are left out.
    """

    def __init__(self, names: Sequence[str], train: Callable[[], Dataset]) -> None:
        check(names)
        self.names = list(names)
        self.train = train
        self._model: FixedBatch | None = None

    def __call__(self, model: FixedBatch, images: Tensor) -> dict[str, Tensor]:
        if self._model is not model:
            self._fit(model)
            self._model = model
        found = {}
        both = in_fixed_batches(model, lambda x: _activations(model.model, self._layer, x), images)
        model.forwards += 1
        logits, features = both[:, -model.num_classes :], both[:, : -model.num_classes]
        parts = {"pictures": images, "logits": logits, "features": features, "head": features}
        for name, outlier_score in self._outliers.items():
            needs = DETECTORS[name].needs
            # one by one and in separate memory, since the last bits of some detectors depend on the other
            # rows and on alignment; one that needs "pictures" calls the model, a FixedBatch
            rows = [row.clone() for row in parts[needs].split(1)]
            several = [images] if needs == "pictures" else rows
            with torch.set_grad_enabled(needs == "pictures"):
                found[name] = torch.cat(
                    [-outlier_score(part).detach().double().cpu().view(-1) for part in several]
                )
        return found

    def _fit(self, model: FixedBatch) -> None:
        import pytorch_ood.detector as library

        train = self.train()
        rows = np.linspace(0, len(train) - 1, min(len(train), FIT_SAMPLES)).astype(np.int64)
        weight = next(model.parameters(), torch.zeros(()))
        images = train.images[rows].to(weight.device)
        self._layer, head = find_layer(model.model, images[: max(2, model.batch)])
        both = in_fixed_batches(model, lambda x: _activations(model.model, self._layer, x), images)
        features, logits = both[:, : -model.num_classes], both[:, -model.num_classes :]
        layer = None if self._layer is None else copy.deepcopy(self._layer).cpu()
        fit_data = FitData(features, logits, train.labels[rows], layer, model)
        self._outliers = {}
        for name in self.names:
            needs = DETECTORS[name].needs
            if (needs in ("features", "head") and layer is None) or (needs == "head" and not head):
                continue
            try:
                self._outliers[name] = DETECTORS[name].fit(library, fit_data)
            except Exception as error:  # too few images, a class never predicted, and the like
                logging.getLogger(__name__).warning("the detector %s cannot be fitted: %s", name, error)


@torch.no_grad()
def find_layer(model: Classifier, images: Tensor) -> tuple[nn.Linear | None, bool]:
    """The last linear layer whose input depends on the image, None if there is none; and whether its output
    is the logits. ``images``: at least two different images."""
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    hooks = [
        layer.register_forward_hook(lambda m, given, out: calls.append((m, given[0], out)))
        for layer in layers
    ]
    try:
        logits = model.logits(images)
    finally:
        for hook in hooks:
            hook.remove()
    # the input of a layer for the noise level is the same for all images
    seen = [
        (m, out)
        for m, x, out in calls
        if x.ndim == 2 and len(x) == len(images) and not bool((x == x[0]).all())
    ]
    if not seen:
        return None, False
    layer, out = seen[-1]
    return layer, out.shape == logits.shape and torch.allclose(out, logits, rtol=1e-4, atol=1e-4)


def _activations(model: Classifier, layer: nn.Linear | None, x: Tensor) -> Tensor:
    """The input of ``layer``, if any, and the logits, concatenated, (batch, d + classes), on the CPU."""
    given: list[Tensor] = []
    hook = None if layer is None else layer.register_forward_pre_hook(lambda m, args: given.append(args[0]))
    try:
        logits = model.logits(x)
    finally:
        if hook is not None:
            hook.remove()
    return torch.cat([*given[-1:], logits], 1).float().cpu()


@torch.no_grad()
def in_fixed_batches(model: FixedBatch, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``function(images)``, (n, columns), at the batch sizes of the model; not counted as calls of it."""
    return FixedBatch(_Function(model, function), model.batch, sizes=model.sizes).logits(images)


class _Function(Classifier):
    """A function of images in the place of a model's logits."""

    def __init__(self, model: Classifier, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.num_classes, self.input_shape = model.num_classes, model.input_shape
        self.function = function

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.function(x)
