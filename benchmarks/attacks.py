"""Measure AutoAttack beside the reference: seconds and verdicts, on the same nets and pictures.

    python benchmarks/attacks.py [NET ...] [--n N] [--eps EPS] [--threads T] [--json]

Needs ROBUSTGEN_DATA (CIFAR-10). The reference is pyautoattack's ``standard`` version, as it comes
and in channels_last, with two seeds (the second for its verdict alone); ours takes gradients in
bfloat16 with the audit, and once more is run in plain float32: no other kernels, no other layout, no
folding. Everything runs in one process with the same threads. A reference result is kept in the
user's cache folder, by the hash of all that it depends on, this machine included: the slow part is
paid once.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kept import kept
from torch import Tensor, nn

from robustgen import load_data, load_model
from robustgen.attacks.autoattack import AutoAttack
from robustgen.audit import AUDIT
from robustgen.classifiers.base import PlainClassifier
from robustgen.classifiers.fixed_batch import FixedBatch
from robustgen.classifiers.quick import quick_copy
from robustgen.draws import Draws
from robustgen.environment import environment
from robustgen.threat import ThreatModel

SHAPE = (3, 32, 32)
# The number of pictures of each net, and whose net it is.
NETS = {"resnet18_robust": 16, "width32_robust": 128, "width32_plain": 128}


def build(name: str) -> nn.Module:
    """A net under its name in the table."""
    if name == "width32_robust":
        return load_model("pgd-at-cifar10")
    if name == "width32_plain":
        return load_model("softmax-cifar10")
    import pyautoattack

    folder = Path(pyautoattack.__file__).parent / "examples"
    sys.path.insert(0, str(folder))
    from resnet import ResNet18

    net = ResNet18()
    net.load_state_dict(torch.load(folder / "model_test.pt", map_location="cpu", weights_only=True))
    return net.eval().requires_grad_(False)


def reference(net: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int, layout: str) -> dict[str, Any]:
    """Seconds and the samples left standing, by pyautoattack; from the cache where it is there."""
    said = (eps, seed, layout, torch.get_num_threads(), sorted(environment().items()))

    def measure() -> dict[str, Any]:
        from pyautoattack import AutoAttack as Reference

        attack = Reference(_Laid(net, layout).eval(), norm="Linf", eps=eps, seed=seed, device="cpu")
        began = time.perf_counter()
        x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
        seconds = time.perf_counter() - began
        with torch.no_grad():
            return {"seconds": seconds, "robust": (net(x_adv).argmax(1) == y).tolist()}

    return kept("reference", said, (*net.state_dict().values(), x, y), measure)


class _Laid(nn.Module):
    """A net in a memory layout. Pictures come as they are: the reference's own code takes no other."""

    def __init__(self, net: nn.Module, layout: str) -> None:
        super().__init__()
        self.layout = getattr(torch, layout)
        self.net = copy.deepcopy(net).to(memory_format=self.layout)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.contiguous(memory_format=self.layout))


def ours(net: nn.Module, x: Tensor, y: Tensor, eps: float, *, quick: bool) -> dict[str, Any]:
    """Seconds, the samples left standing, and the model's calls, by this package."""
    plain = PlainClassifier(net, 10, SHAPE).eval()
    began = time.perf_counter()
    copied = quick_copy(plain, x[:8]) if quick else None
    model = FixedBatch(plain, len(x), quick=copied, bfloat16_gradients=quick, sizes=range(1, len(x) + 1))
    model.begin(len(x))
    found = AutoAttack(ThreatModel("linf", eps))(model, x, y, Draws(0, "benchmark", torch.arange(len(x))))
    seconds = time.perf_counter() - began
    with torch.no_grad():
        robust = net(found.images).argmax(1) == y
        clean = net(x).argmax(1) == y
    return {
        "seconds": seconds,
        "robust": robust.tolist(),
        "calls_per_survivor": _calls(model, robust),
        "calls_per_broken": _calls(model, clean & ~robust),
        "broken_by": {str(name): (found.broken_by or []).count(name) for name in set(found.broken_by or [])},
    }


def _calls(model: FixedBatch, rows: Tensor) -> dict[str, float] | None:
    if not bool(rows.any()):
        return None
    return {
        "forwards": round(float(model.forwards[rows].mean()), 1),
        "backwards": round(float(model.backwards[rows].mean()), 1),
    }


def measure(name: str, n: int, eps: float, say: Callable[[str], None]) -> dict[str, Any]:
    """One row of the table."""
    data = load_data("cifar10")
    x, y = data.images[:n], data.labels[:n]
    net = build(name)
    last = reference(net, x, y, eps, 0, "channels_last")
    say(f"{name}: reference in channels_last {last['seconds']:.1f} s, {sum(last['robust'])} robust")
    second = reference(net, x, y, eps, 1, "channels_last")
    say(f"{name}: reference, second seed {second['seconds']:.1f} s, {sum(second['robust'])} robust")
    first = reference(net, x, y, eps, 0, "contiguous_format")
    say(f"{name}: reference as it comes {first['seconds']:.1f} s, {sum(first['robust'])} robust")
    fast = ours(net, x, y, eps, quick=True)
    say(f"{name}: ours {fast['seconds']:.1f} s, {sum(fast['robust'])} of {n} robust")
    slow = ours(net, x, y, eps, quick=False)
    say(f"{name}: ours in plain float32 {slow['seconds']:.1f} s, {sum(slow['robust'])} robust")
    return {
        "n": n,
        "eps": eps,
        "reference_seconds": first["seconds"],
        "reference_channels_last_seconds": last["seconds"],
        "ours_seconds": fast["seconds"],
        "ours_float32_seconds": slow["seconds"],
        "ratio": first["seconds"] / fast["seconds"],
        "ratio_channels_last": last["seconds"] / fast["seconds"],
        "ratio_float32": first["seconds"] / slow["seconds"],
        "robust_reference": [sum(one["robust"]) for one in (first, last, second)],
        "robust_ours": sum(fast["robust"]),
        "robust_ours_float32": sum(slow["robust"]),
        "broken_by_audit": fast["broken_by"].get(AUDIT, 0),
        "calls_per_survivor": fast["calls_per_survivor"],
        "calls_per_broken": fast["calls_per_broken"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("nets", nargs="*", default=list(NETS), help=", ".join(NETS))
    parser.add_argument("--n", type=int, help="pictures (default: 16 of the ResNet-18, 128 of the others)")
    parser.add_argument("--eps", type=float, default=8 / 255, help="in Linf (default: 8/255)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stream = sys.stderr if options.json else sys.stdout
    table = {
        name: measure(name, options.n or NETS[name], options.eps, lambda line: print(line, file=stream))
        for name in options.nets
    }
    where = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": environment()["cpu"]}
    if options.json:
        print(json.dumps({**where, "nets": table}, indent=2))
        return
    for name, row in table.items():
        print(
            f"{name}: {row['ratio']:.2f}x the reference as it comes, {row['ratio_channels_last']:.2f}x in "
            f"channels_last; plain float32 {row['ratio_float32']:.2f}x"
        )


if __name__ == "__main__":
    main()
