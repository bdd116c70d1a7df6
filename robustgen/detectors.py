"""Post-hoc detectors of foreign pictures, by name, from pytorch-ood (Kirchheim et al. 2022).

They are fitted on features of the training split. A model's features are what its last linear layer
is given; detectors that change them and go on need that layer's output to be the logits.
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

FITTED = 10_000  # training pictures at most, evenly over the split, which may be sorted by class
Needs = Literal["pictures", "logits", "features", "head"]
Outlier = Callable[[Tensor], Tensor]


class Bank(NamedTuple):
    """What a detector is fitted on: features (n, d), logits (n, classes) and labels (n,) of training
    pictures, on the CPU; a copy of the ``layer`` that the features go into; the model itself."""

    features: Tensor
    logits: Tensor
    labels: Tensor
    layer: nn.Linear | None
    model: FixedBatch


@dataclass(frozen=True)
class Detector:
    """``fit(library, bank)`` gives a map of what the detector ``needs``, a batch of it, to outlier scores
    (batch,), larger for foreign; ``head``: features, and that the layer's output is the logits."""

    needs: Needs
    fit: Callable[[Any, Bank], Outlier]
    summary: str


def _fitted(name: str) -> Callable[[Any, Bank], Outlier]:
    return lambda o, bank: getattr(o, name)(None).fit_features(bank.features, bank.labels).predict_features


def _by_covariance(name: str) -> Callable[[Any, Bank], Outlier]:
    def fit(o: Any, bank: Bank) -> Outlier:
        free, d = len(bank.labels) - len(bank.labels.unique()), bank.features.shape[1]
        if free < d:  # the library inverts what has no inverse, and distances turn negative
            raise ValueError(f"{len(bank.labels)} pictures are too few for a covariance of {d} features")
        return _fitted(name)(o, bank)

    return fit


def _on_head(make: Callable[[Any, nn.Linear], Any]) -> Callable[[Any, Bank], Outlier]:
    return lambda o, bank: make(o, _layer(bank)).fit_features(bank.features, bank.labels).predict_features


def _react(o: Any, bank: Bank) -> Outlier:
    made = o.ReAct(None, _of_maps(_layer(bank))).fit_feature_maps(_maps(bank.features), bank.labels)
    return lambda features: made.predict_feature_maps(_maps(features))


def _shaped(name: str) -> Callable[[Any, Bank], Outlier]:
    def fit(o: Any, bank: Bank) -> Outlier:
        made = getattr(o, name)(None, _of_maps(_layer(bank)))
        return lambda features: made.predict_feature_maps(_maps(features))

    return fit


def _layer(bank: Bank) -> nn.Linear:
    assert bank.layer is not None
    return bank.layer


def _weights(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias if layer.bias is not None else torch.zeros(layer.out_features)


def _maps(features: Tensor) -> Tensor:
    return features[:, :, None, None]


def _of_maps(layer: nn.Linear) -> Outlier:
    return lambda maps: layer(maps.flatten(1))


DETECTORS: dict[str, Detector] = {
    "odin": Detector(
        "pictures", lambda o, bank: o.ODIN(bank.model.logits).predict, "softmax after a step towards it"
    ),
    "gen": Detector("logits", lambda o, bank: o.GEN.score, "generalised entropy of the softmax"),
    "klmatching": Detector(
        "logits",
        lambda o, bank: o.KLMatching(None).fit_logits(bank.logits, bank.labels).predict_logits,
        "divergence from the classes' mean softmax",
    ),
    "knn": Detector("features", _fitted("KNN"), "distance to the 50th nearest training feature"),
    "mahalanobis": Detector(
        "features", _by_covariance("Mahalanobis"), "distance to the nearest class's mean"
    ),
    "rmd": Detector("features", _by_covariance("RMD"), "the same, less the distance to the mean of all"),
    # half the features: what its paper takes for fewer than 768
    "vim": Detector(
        "head",
        _on_head(lambda o, layer: o.ViM(None, layer.in_features // 2, *_weights(layer))),
        "the features' residual as a logit of its own",
    ),
    "dice": Detector(
        "head", _on_head(lambda o, layer: o.DICE(None, *_weights(layer), p=0.9)), "energy by the used weights"
    ),
    "she": Detector(
        "head", _on_head(lambda o, layer: o.SHE(None, layer)), "likeness to the predicted class's mean"
    ),
    "react": Detector("head", _react, "energy of clipped features"),
    "ash": Detector("head", _shaped("ASH"), "energy of pruned and scaled features"),
    "scale": Detector("head", _shaped("SCALE"), "energy of scaled features"),
}
"""By the name that a protocol uses; each with its paper's settings, as pytorch-ood has them."""


def library_version() -> str | None:
    """The version of pytorch-ood; None where it is not installed."""
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
    """Detectors by name, fitted on up to 10,000 pictures of ``train()`` when a model is first scored.

    A score is the negative of pytorch-ood's. A model without features, or whose features do not go
    into its logits by a linear layer, lacks the detectors that need them, and those that cannot be fitted.
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
        both = at_its_batch(model, lambda x: _activations(model.model, self._layer, x), images)
        model.forwards += 1
        logits, features = both[:, -model.num_classes :], both[:, : -model.num_classes]
        parts = {"pictures": images, "logits": logits, "features": features, "head": features}
        for name, outlier in self._outliers.items():
            needs = DETECTORS[name].needs
            # one by one and each in memory of its own, since the last bits of some depend on a row's
            # neighbours and place; with pictures it is the model that is asked, which pads for itself
            rows = [row.clone() for row in parts[needs].split(1)]
            several = [images] if needs == "pictures" else rows
            with torch.set_grad_enabled(needs == "pictures"):
                found[name] = torch.cat([-outlier(part).detach().double().cpu().view(-1) for part in several])
        return found

    def _fit(self, model: FixedBatch) -> None:
        import pytorch_ood.detector as library

        train = self.train()
        rows = np.linspace(0, len(train) - 1, min(len(train), FITTED)).astype(np.int64)
        weight = next(model.parameters(), torch.zeros(()))
        images = train.images[rows].to(weight.device)
        self._layer, head = find_layer(model.model, images[: max(2, model.batch)])
        both = at_its_batch(model, lambda x: _activations(model.model, self._layer, x), images)
        features, logits = both[:, : -model.num_classes], both[:, -model.num_classes :]
        layer = None if self._layer is None else copy.deepcopy(self._layer).cpu()
        bank = Bank(features, logits, train.labels[rows], layer, model)
        self._outliers = {}
        for name in self.names:
            needs = DETECTORS[name].needs
            if (needs in ("features", "head") and layer is None) or (needs == "head" and not head):
                continue
            try:
                self._outliers[name] = DETECTORS[name].fit(library, bank)
            except Exception as error:  # too few pictures, a class never predicted: each has its own
                logging.getLogger(__name__).warning("the detector %s cannot be fitted: %s", name, error)


@torch.no_grad()
def find_layer(model: Classifier, images: Tensor) -> tuple[nn.Linear | None, bool]:
    """The last linear layer that a forward gives something of each picture, None where there is none;
    and whether its output is the logits. ``images``: at least two different pictures."""
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
    # what is given the noise level alone is the same for all pictures
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
    """Features, where there is a layer, and logits beside them, (batch, d + classes), on the CPU."""
    given: list[Tensor] = []
    hook = None if layer is None else layer.register_forward_pre_hook(lambda m, args: given.append(args[0]))
    try:
        logits = model.logits(x)
    finally:
        if hook is not None:
            hook.remove()
    return torch.cat([*given[-1:], logits], 1).float().cpu()


@torch.no_grad()
def at_its_batch(model: FixedBatch, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``function`` of pictures, (n, columns), at the batch sizes of the model; not counted as calls of it."""
    return FixedBatch(_Function(model, function), model.batch, sizes=model.sizes).logits(images)


class _Function(Classifier):
    """A map of pictures in the place of a model's logits."""

    def __init__(self, model: Classifier, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.num_classes, self.input_shape = model.num_classes, model.input_shape
        self.function = function

    def logits(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        return self.function(x)
