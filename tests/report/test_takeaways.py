"""What the page shows as text, cell by cell and sentence by sentence, against summary.json."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

import numpy as np
import pytest
from report_page import Page, plain, shows
from scipy.stats import norm

Key = tuple[str, str, str]


def numbers(summary: dict[str, Any]) -> dict[Key, dict[str, dict[str, Any]]]:
    found: dict[Key, dict[str, dict[str, Any]]] = {}
    for metric in summary["metrics"]:
        key = (metric["evaluation"], metric["variant"], metric["metric"])
        found.setdefault(key, {})[metric["model"]] = metric
    return found


def test_the_text_of_every_cell_is_its_number(page: Page, summary: dict[str, Any]) -> None:
    known, cells = numbers(summary), [cell for cell in page.cells if "low" in cell]
    assert cells
    for cell in cells:
        metric = known[cell["evaluation"], cell["variant"], cell["metric"]][cell["model"]]
        texts = plain(cell["text-value"]) + plain(cell["text-interval"])
        assert len(texts) == 3, cell
        for text, end in zip(texts, ("value", "ci_low", "ci_high"), strict=True):
            assert shows(text, metric, metric[end]), (cell, metric)


def test_the_text_of_every_paired_test_is_its_number(page: Page, summary: dict[str, Any]) -> None:
    known = {
        (t["evaluation"], t["variant"], t["metric"], t["model_a"], t["model_b"]): t
        for t in summary["comparisons"]
    }
    for cell in [cell for cell in page.cells if "test" in cell]:
        test = known[tuple(cell[k] for k in ("evaluation", "variant", "metric", "first", "second"))]  # type: ignore[index]
        if cell["test"] == "difference":
            texts = plain(cell["text-value"]) + plain(cell["text-interval"])
            ends = [test[k] for k in ("difference", "ci_low", "ci_high")]
            assert all(shows(text, test, end) for text, end in zip(texts, ends, strict=True)), (cell, test)
        elif cell["text"] == "< 0.001":
            assert test[cell["test"]] < 0.001
        else:
            assert float(cell["text"]) == pytest.approx(test[cell["test"]], abs=0.000501)


def spoken(opening: str) -> Key:
    """What a sentence of "In short" is about."""
    first, _, about = opening.partition(", ")
    if first == "Under attack":
        norm, _, eps = about.removesuffix(", by majority").partition(" ≤ ")
        name = {"L∞": "linf", "L2": "l2", "L1": "l1"}[norm]
        variant = "majority" if about.endswith("by majority") else ""
        return f"worst-{name}-{eps.replace('/', '-')}", variant, "robust_accuracy"
    if first == "Foreign pictures":
        data, _, score = about.partition(" by ")
        return f"ood-{data}", {"energy": "energy", "log p(x)": "log_prob"}[score], "auroc"
    return {
        "On clean pictures": ("clean", "", "accuracy"),
        "On corrupted pictures": ("corruptions", "all", "corruption_accuracy"),
        "Confidence": ("clean", "", "ece"),
    }[opening]


def named(sentence: str) -> set[str]:
    """The models that a sentence begins with: a, b (doubted) and c."""
    names = re.match(r"[a-z][\w.-]*( \(doubted\))?((, | and )[a-z][\w.-]*( \(doubted\))?)*", sentence)
    assert names, sentence
    return set(re.split(r", | and ", names[0].replace(" (doubted)", "")))


def test_the_sentences_in_short_give_the_best_and_the_last(page: Page, summary: dict[str, Any]) -> None:
    known = numbers(summary)
    sentences = [(o, s) for o, s in page.reading if not o.startswith(("Class gradients", "Denoising"))]
    assert len(sentences) >= 6
    for opening, sentence in sentences:
        metrics = known[spoken(opening)]
        higher = next(iter(metrics.values()))["higher_is_better"]
        ordered = sorted(metrics.values(), key=lambda m: m["value"], reverse=higher)

        def equal(end: dict[str, Any], several: list[dict[str, Any]] = ordered) -> set[str]:
            return {m["model"] for m in several if m["value"] == end["value"]}

        best, last = ordered[0], ordered[-1]
        expected = [(best, "value"), (best, "ci_low"), (best, "ci_high")]
        if sentence.startswith("All models alike"):
            assert len(plain(sentence)) == 3
        elif len(ordered) > 1:
            expected.append((last, "value"))
            assert named(sentence.rpartition("ast ")[2].removeprefix("is ").removeprefix("are ")) == equal(
                last
            )
        if not sentence.startswith("All models alike"):
            assert named(sentence) == equal(best)
        said = plain(sentence)
        assert len(said) == len(expected), sentence
        assert all(shows(s, m, m[k]) for s, (m, k) in zip(said, expected, strict=True)), sentence


@pytest.mark.parametrize(
    ("opening", "metric", "labels"),
    [
        ("Class gradients", "guidance_gain", ("Improve the reference denoiser", "Make it worse")),
        ("Denoising", "psnr_gain", ("Better than the Wiener filter", "Worse")),
    ],
)
def test_the_sentences_on_gradients_name_who_differs_from_0(
    page: Page, summary: dict[str, Any], opening: str, metric: str, labels: tuple[str, str]
) -> None:
    sentence = next((said for o, said in page.reading if o.partition(", ")[0] == opening), "")
    tested = [
        m for m in summary["metrics"]
        if m["metric"] == metric and (metric == "guidance_gain" or m["variant"] == "sigma-0.25")
    ]  # fmt: skip
    # Holm by its definition: the first that fails stops all after it
    p = [2 * norm.sf(abs(m["value"]) / ((m["ci_high"] - m["ci_low"]) / 3.92)) for m in tested]
    stands = takewhile(lambda i: (len(p) - i[0]) * p[i[1]] < 0.05, enumerate(np.argsort(p)))
    expected = {
        (tested[i]["model"], tested[i]["variant"].removeprefix("sigma-"), tested[i]["value"] > 0)
        for _, i in stands
    }
    said = set()
    for part in re.split(r"(?<=\.) (?=[A-Z])", sentence.partition(" (Tests")[0].replace(" (doubted)", "")):
        label, _, listed = part.partition(": ")
        for names, sigmas in re.findall(r"([\w, -]+) at σ ([\d., ]*\d)", listed):
            models = names.strip().split(", ")
            said |= {(name, s, label == labels[0]) for name in models for s in sigmas.split(", ")}
            assert label in labels
    assert said == expected


def test_every_doubt_is_shown_with_its_numbers(page: Page, summary: dict[str, Any]) -> None:
    flags = summary["flags"]
    assert flags
    for flag in flags:
        fact, _, remedy = flag["message"].partition(". ")
        where = f"{flag['model']} ({flag['evaluation']})" if flag["evaluation"] else flag["model"]
        assert any(
            any(p.startswith(fact.rstrip(".") + ". ") and where in p for p in shown)
            and (not remedy or remedy in shown)
            for shown in page.flags
        ), flag
    said = {number for shown in page.flags for p in shown for number in plain(p)}
    told = (f"{flag['message']} {flag['evaluation']}" for flag in flags)
    assert said <= {number for text in told for number in plain(text)}
