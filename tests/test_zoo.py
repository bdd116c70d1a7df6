"""The cards of the digits zoo are honest: every claim is measured again, and meets the project's bars."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from robustgen import load_model, registry

ROOT = Path(__file__).resolve().parent.parent
PROTOCOL = "linf-0.15"
ATTACKED = ("robust_accuracy", "autoattack-linf-0.15", "")


@pytest.fixture(scope="module")
def claims() -> dict[str, dict[tuple[str, str, str], float]]:
    """What the cards claim: by model, by (metric, evaluation, variant)."""
    cards = [registry.load_card(model.folder) for model in registry.resolve_all([], "digits")]
    families = {"softmax", "softmax-noise", "pgd-at", "jem", "gmmc", "cdn", "egc"}
    assert families <= {card.family for card in cards}
    return {card.name: {(c.metric, c.evaluation, c.variant): c for c in card.claims} for card in cards}


def test_every_classifier_claims_97_percent_clean(claims):
    clean = {name: own["accuracy", "clean", ""] for name, own in claims.items()}
    assert all(claim.value >= 0.97 and claim.n == 400 for claim in clean.values()), clean


def test_the_classifiers_over_the_denoiser_claim_96_percent_and_say_what_they_cost():
    for name in ("diffusion-digits", "score-digits"):
        (reference,) = registry.resolve(name)
        card = registry.load_card(reference.folder)
        assert card.calls == load_model(name).calls_per_image
        (clean,) = [claim for claim in card.claims if claim.metric == "accuracy"]
        assert clean.value >= 0.96, name
        assert clean.n == 400


def test_cards_put_what_others_published_beside_their_claims():
    cards = [registry.load_card(folder) for folder in registry.model_folders().values()]
    silent = {card.family for card in cards if not card.published}
    # a twin and a denoiser of this project's own: nobody else published figures of them
    assert silent <= {"softmax-noise", "denoiser", "cdn"}, silent
    for line in (line for card in cards for line in card.published):
        assert ": " in line, line  # the source, then the figures
        assert "Ours" in line, line


def test_adversarial_training_withstands_what_breaks_softmax(claims):
    assert claims["pgd-at-digits"][ATTACKED].value >= 0.70
    assert claims["softmax-digits"][ATTACKED].value <= 0.30


def test_the_joint_model_denoises_and_its_gradients_guide(claims):
    cdn, softmax = claims["cdn-digits"], claims["softmax-digits"]
    assert cdn["psnr_gain", "gradients", "sigma-0.25"].value >= 1.0
    gains = {key: claim for key, claim in cdn.items() if key[0] == "guidance_gain"}
    above = [key for key, claim in gains.items() if claim.ci_low > max(0, softmax[key].ci_high)]
    assert len(above) >= 2, gains


@pytest.mark.parametrize(
    "page", sorted(p.parent for p in ROOT.glob("reports/*/summary.json")), ids=lambda p: p.name
)
def test_cards_claim_what_the_published_pages_say(page: Path):
    summary = json.loads((page / "summary.json").read_text())
    said = {(m["model"], m["evaluation"], m["metric"], m["variant"]): m for m in summary["metrics"]}
    folders = registry.model_folders()
    compared = 0
    for name in {m["model"] for m in summary["metrics"]} & folders.keys():
        for claim in registry.load_card(folders[name]).claims:
            metric = said.get((name, claim.evaluation, claim.metric, claim.variant))
            if claim.protocol == summary["protocol"]["name"] and metric and metric["n"] == claim.n:
                for key in ("value", "ci_low", "ci_high"):
                    assert getattr(claim, key) == pytest.approx(metric[key], abs=1e-6), (name, claim)
                compared += 1
    assert compared >= 2 or page.name == "cifar10-quick"  # of 128 pictures, which no card claims


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_claim_is_reproduced(tmp_path: Path):
    command = [sys.executable, "benchmarks/zoo.py", "*-digits", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.splitlines()[-1]
    reproduced, of, claimed = last.split()[:3]
    assert (reproduced, of) == (claimed, "of")
    assert int(claimed) >= 40
    sizes = {run.name: json.loads((run / "summary.json").read_text())["n"] for run in tmp_path.iterdir()}
    assert sizes == {"digits-linf-0.15": 400, "digits-clean": 400}
