"""APGD beside the reference: loss by loss in float64, and verdict by verdict in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pyautoattack import autopgd_base
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn
from torch.nn import functional

from robustgen import data, load_model
from robustgen.attacks.apgd import APGD, apgd, checkpoint_intervals, targets
from robustgen.attacks.search import Start, replay, run
from robustgen.attacks.victim import Answer, Victim
from robustgen.classifiers.base import FixedBatch, PlainClassifier
from robustgen.draws import Draws
from robustgen.threat import ThreatModel

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
LOSSES = ("ce", "dlr", "dlr-targeted")
SEED = 5


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All in float64, the reference's projection in L1 too, which rounds its input to float32.

    In L1 the reference counts the pixels that moved, and takes for moved what its x + delta - delta
    leaves of rounding; so that the counts can be compared, here they are of more than rounding.
    """
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(autopgd_base, "L0_norm", lambda x: (x.abs() > 1e-9).flatten(1).sum(1))
    yield
    torch.set_default_dtype(torch.float32)


class Recording(Victim):
    """A victim that keeps the losses it was asked for, one tensor (batch,) a question."""

    def __init__(self, model: FixedBatch | PlainClassifier) -> None:
        super().__init__(model)
        self.losses: list[Tensor] = []

    def gradient(self, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Answer:
        answer = super().gradient(x, loss)
        assert answer.loss is not None
        self.losses.append(answer.loss)
        return answer


def random_net(n: int) -> tuple[PlainClassifier, Tensor, Tensor]:
    """A net of random weights on 3x6x5, pictures with pixels at the box's sides, and its own predictions."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(90, 32), nn.SiLU(), nn.Linear(32, 10))
    model = PlainClassifier(net.requires_grad_(False), 10, (3, 6, 5))
    x = (torch.rand(n, 3, 6, 5) * 1.4 - 0.2).clamp(0, 1)
    return model, x, model(x).argmax(1)


def reference(model: nn.Module, norm: str, loss: str, eps: float, **more: Any) -> APGDAttack:
    """The reference's attack, as its AutoAttack sets it up."""
    settings = {"norm": NORMS[norm], "eps": eps, "seed": SEED, "device": "cpu"} | more
    settings["use_largereps"] = norm == "l1"
    if loss == "dlr-targeted":
        return APGDAttack_targeted(model, **settings)
    return APGDAttack(model, loss=loss, **settings)


def reference_losses(
    model: PlainClassifier, x: Tensor, y: Tensor, norm: str, loss: str, eps: float, n_iter: int
) -> Tensor:
    """What the reference's loss was at every point of its one run, (points, batch)."""
    logits: list[Tensor] = []

    def asked(points: Tensor) -> Tensor:
        logits.append(model(points))
        return logits[-1]

    attack = reference(asked, norm, loss, eps, n_iter=n_iter)  # type: ignore[arg-type]
    attack.init_hyperparam(x)
    if isinstance(attack, APGDAttack_targeted):
        attack.y_target = model(x).sort(dim=1)[1][:, -2]
    torch.manual_seed(SEED)
    if norm == "l1":
        early = -(-3 * n_iter // 10)
        attack.decr_eps_pgd(x, y, [3 * eps, 2 * eps, eps], [early, early, n_iter - 2 * early])
    else:
        attack.attack_single_run(x, y)
    criterion = {
        "ce": lambda z: functional.cross_entropy(z, y, reduction="none"),
        "dlr": lambda z: attack.dlr_loss(z, y),
        "dlr-targeted": lambda z: attack.dlr_loss_targeted(z, y),
    }[loss]
    return torch.stack([criterion(z.detach()) for z in logits])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n_iter", [100, 23])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.25), ("l1", 1.5)])
def test_every_loss_is_the_references(norm: str, eps: float, loss: str, n_iter: int) -> None:
    model, x, y = random_net(16)
    theirs = reference_losses(model, x, y, norm, loss, eps, n_iter)
    victim = Recording(model)
    replay(apgd(ThreatModel(norm, eps), loss, n_iter=n_iter), victim, x, y, SEED)
    ours = torch.stack(victim.losses)
    if loss == "ce":
        ours = functional.softplus(ours)  # of the log odds: see losses.log_odds
    assert ours.shape == theirs.shape == (n_iter + (3 if norm == "l1" else 1), 16)
    print("DIFF", norm, loss, n_iter, float((ours - theirs).abs().max()))
    assert (ours[-1] > ours[0]).float().mean() > 0.8
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
