"""Flags of attacks, each on the rows that show it and on the nearest rows that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from doubt_fakes import attack, rows, run

from robustgen.metrics.attack_doubts import attack_doubts
from robustgen.metrics.intervals import wilson
from robustgen.metrics.rows import Run
from robustgen.types import Flag

CLEAN = {"name": "clean", "kind": "clean"}
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
PLUS = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")


def flags(found: Run) -> dict[str, Flag]:
    several = list(attack_doubts(found))
    assert len({flag.flag for flag in several}) == len(several)
    return {flag.flag: flag for flag in several}


def verdicts(right: int, n: int = 100) -> list[bool]:
    return [True] * right + [False] * (n - right)


def test_noise_is_no_attack_that_could_fail() -> None:
    half, full = (rows(verdicts(right), label=[0] * 50 + [1] * 50) for right in (50, 100))
    noise = run((CLEAN, half), (attack("noise", 0.5), full))
    assert flags(noise) == {}
    assert set(flags(run((CLEAN, half), (attack("pgd", 0.5), full)))) == {"easier_than_clean", "attack_fails"}


@pytest.mark.parametrize("name", ["noise", "transfer", "added", "apgd-t"])
def test_an_own_attack_is_one_whatever_its_file_is_called(name: str) -> None:
    strong, weak = rows(verdicts(20)), rows(verdicts(80))
    own = attack(f"{name}-strong") | {"code": "ab"}
    others = [(attack("pgd"), weak), (attack("noise"), rows(verdicts(90)))]
    specs = [{"kind": "attack", "attack": f"{name}.py:strong", "options": {}}]
    assert flags(run(*others, (own, strong), precision="bf16", specs=specs)) == {}
    assert set(flags(run((CLEAN, weak), (own, rows(verdicts(90)))))) == {"easier_than_clean"}


@pytest.mark.parametrize(
    ("beaten", "norm", "eps", "flagged"),
    [(2, "linf", 0.1, True), (1, "linf", 0.1, True), (0, "linf", 0.1, False), (9, "l2", 0.1, False),
     (9, "linf", 0.05, False)],
)  # fmt: skip
def test_pictures_of_other_models_that_break_what_the_search_left(
    beaten: int, norm: str, eps: float, flagged: bool
) -> None:
    """The search leaves the first 60 of 100; in another norm or a smaller ball it says nothing of that."""
    transferred = rows([False] * beaten + [True] * (100 - beaten))
    found = flags(run((attack("pgd", eps, norm), rows(verdicts(60))), (attack("transfer"), transferred)))
    assert ("transfer_beats_search" in found) == flagged
    if flagged:
        assert f"{beaten} of 60 samples" in found["transfer_beats_search"].message


@pytest.mark.parametrize(
    ("searched", "norm", "eps", "weaker"),
    [
        (81, "linf", 0.1, True),
        (80, "linf", 0.1, False),
        (81, "linf", 0.2, True),
        (81, "linf", 0.05, False),  # in a smaller ball there may be less to find
        (81, "l2", 0.1, False),
    ],
)
def test_an_attack_that_breaks_less_than_noise_is_an_error(
    searched: int, norm: str, eps: float, weaker: bool
) -> None:
    found = flags(
        run((attack("noise"), rows(verdicts(80))), (attack("pgd", eps, norm), rows(verdicts(searched))))
    )
    assert ("weaker_than_noise" in found) == weaker
    if weaker:
        assert found["weaker_than_noise"].severity == "error"
        assert (
            "81 of 100 right under this attack, 80 under random noise" in found["weaker_than_noise"].message
        )


@pytest.mark.parametrize(("regained", "lost", "flagged"), [(6, 5, False), (12, 1, True)])
def test_the_luck_of_a_stochastic_models_draws_is_no_error(regained: int, lost: int, flagged: bool) -> None:
    before = np.array(verdicts(60))
    after = before.copy()
    after[60 : 60 + regained], after[:lost] = True, False
    clean, attacked, noisy = (
        rows(r.tolist(), draws=[32] * 100, draws_correct=(32 * r).tolist()) for r in (before, after, before)
    )
    found = flags(run((CLEAN, clean), (attack("pgd"), attacked), (attack("noise"), noisy)))
    assert ({"easier_than_clean", "weaker_than_noise"} <= set(found)) == flagged
    assert flagged or not found


@pytest.mark.parametrize(("regained", "flagged"), [(2, False), (3, True)])
def test_samples_that_a_larger_ball_gives_back_are_counted_one_by_one(regained: int, flagged: bool) -> None:
    small = np.array(verdicts(60))
    large = np.array(verdicts(40))  # in sum it falls
    large[60 : 60 + regained] = True
    series = [(attack("pgd", 0.2), rows(large.tolist())), (attack("pgd", 0.1), rows(small.tolist()))]
    found = flags(run(*series))
    assert ("not_monotone_in_eps" in found) == flagged
    if flagged:
        assert found["not_monotone_in_eps"].evaluation == "pgd-linf-0.2"
        assert found["not_monotone_in_eps"].message.startswith("3 of 100 samples that pgd-linf-0.1 broke")
    other = [(attack("apgd-ce", 0.2), rows(large.tolist())), series[1]]
    assert flags(run(*other)) == {}


@pytest.mark.parametrize(
    ("stage", "cascade", "flagged"),
    [
        ("square", STANDARD, True),
        ("fab-t", STANDARD, False),
        ("bpda", (*STANDARD, "bpda"), True),
        ("square", ("square",), False),
    ],
)
def test_a_stage_without_the_models_gradients_that_breaks_more(
    stage: str, cascade: tuple[str, ...], flagged: bool
) -> None:
    broken = rows(verdicts(99), broken_by=[None] * 99 + [stage])
    found = flags(run((attack("autoattack", cascade=cascade), broken), classes=10))
    assert ("masked_gradients" in found) == flagged
    if flagged:
        assert "broke 1 of 100" in found["masked_gradients"].message


@pytest.mark.parametrize(
    ("right", "labels", "flagged"),
    [
        (50, [0] * 50 + [1] * 50, False),
        (80, [0] * 50 + [1] * 50, True),
        (80, [0] * 80 + [1] * 20, False),  # one answer for all pictures has as many right
        (80, [0] * 20 + [1] * 80, False),
    ],
)
def test_more_right_than_the_largest_class_where_every_picture_can_be_grey(
    right: int, labels: list[int], flagged: bool
) -> None:
    found = flags(run((attack("pgd", 0.5), rows(verdicts(right), label=labels))))
    assert ("attack_fails" in found) == flagged
    assert flags(run((attack("pgd", 0.4), rows(verdicts(right), label=labels)))) == {}


def audit(broken: int, survivors: int = 64, chunk: int = 64, **more: Any) -> dict[str, Flag]:
    found = rows(
        verdicts(survivors - broken, survivors), broken_by=[None] * (survivors - broken) + ["audit"] * broken
    )
    given = {"precision": "bf16", "chunk": chunk, "classes": 10} | more
    return flags(run((attack("autoattack", cascade=STANDARD), found), **given))


def test_an_audit_says_how_many_of_how_many_it_broke() -> None:
    none, one = audit(0)["audit"], audit(1)["audit"]
    assert (none.severity, one.severity) == ("info", "warning")
    assert none.message.startswith("0 of 8 audited survivors")  # every 8th of 64
    assert one.message.startswith("1 of 8 audited survivors")
    assert f"at most {100 * wilson(1, 8).high:.2g} %" in one.message
    assert "--precision float32" in one.message
    assert audit(0, chunk=16)["audit"].message.startswith("0 of 16 ")  # 4 at least in each of 4 chunks
    assert audit(0, survivors=3)["audit"].message.startswith("0 of 3 ")
    assert "thorough" not in none.message
    assert flags(run((attack("square"), rows(verdicts(64))), precision="bf16", chunk=64, classes=3)) == {}
    assert "audit" not in audit(0, precision="float32")
    early = flags(
        run(
            (attack("autoattack", cascade=STANDARD) | {"thorough": False}, rows(verdicts(64))),
            precision="float32", chunk=64, classes=10,
        )
    )["audit"]  # fmt: skip
    assert early.message.startswith("0 of 8 ")
    assert "thorough: true" in early.message
    assert "bfloat16" not in early.message
    assert "audit" not in flags(run((attack("pgd"), rows(64)), precision="bf16"))
    # pyautoattack's code and stochastic models are spared nothing
    by_chunk = rows(64, seeded_by=["chunk"] * 64)
    spared = attack("autoattack", cascade=STANDARD) | {"thorough": False}
    assert "audit" not in flags(run((spared, by_chunk), precision="bf16", classes=10))


@pytest.mark.parametrize(
    ("classes", "options", "says"),
    [
        (10, {}, None),
        (3, {}, "so the margin was used"),
        (8, {}, "the 9 asked for"),
        (8, {"n_target_classes": 5}, None),
    ],
)
def test_too_few_classes_for_a_targeted_attack(
    classes: int, options: dict[str, int], says: str | None
) -> None:
    plain = (attack("pgd"), rows())
    targeted = (attack("autoattack-t5", cascade=STANDARD), rows())
    specs = [
        {"kind": "clean"},
        {"kind": "attack", "attack": "pgd", "options": {}},
        {"kind": "attack", "attack": "autoattack", "options": options},
    ]
    found = flags(run(plain, targeted, classes=classes, specs=specs))
    assert ("few_classes" in found) == (says is not None)
    if says:
        assert says in found["few_classes"].message
    assert flags(run(plain, classes=classes, specs=specs)) == {}


def test_the_classes_aimed_at_are_those_of_norm_and_attack() -> None:
    in_l1 = (attack("autoattack", norm="l1", cascade=STANDARD), rows())
    assert flags(run(in_l1, classes=8)) == {}  # 5 of 7 are aimed at
    assert "the 5 asked for" in flags(run(in_l1, classes=5))["few_classes"].message
    specs = [
        {"kind": "attack", "attack": "fab", "options": {"n_target_classes": 3}},
        {"kind": "attack", "attack": "fab-t", "options": {}},
    ]
    assert "few_classes" in flags(run((attack("fab-t"), rows()), classes=8, specs=specs))
    # FAB-T aims at 9 in L1 too, and the larger version with all of its attacks
    assert "few_classes" in flags(run((attack("fab-t", norm="l1"), rows()), classes=8, specs=specs))
    plus = (attack("autoattack-plus", norm="l1", cascade=PLUS), rows())
    assert "the 9 asked for" in flags(run(plus, classes=8))["few_classes"].message


@pytest.mark.parametrize("draws", [1, 32])
@pytest.mark.parametrize("back", [0, 2])
def test_hits_that_the_verdict_takes_back_are_told_of_a_model_that_is_not_random(
    back: int, draws: int
) -> None:
    broken = rows(verdicts(50 + back), broken_by=[None] * 50 + ["pgd"] * 50)
    if draws > 1:
        broken = replace(broken, draws=np.full(100, draws), draws_correct=draws * broken.correct)
    found = flags(run((CLEAN, rows(verdicts(100))), (attack("pgd"), broken)))
    assert ("hits_taken_back" in found) == (back > 0 and draws == 1)


def test_draws_that_differ_by_chance_are_broken_by_no_other_picture() -> None:
    drawn = {"draws": [32] * 20, "label": [0] * 20}
    searched = rows(20, **drawn | {"draws_correct": [18] * 20})
    for correct, flagged in ((15, False), (2, True)):
        moved = rows(20, **drawn | {"draws_correct": [correct] * 10 + [32] * 10})
        for name in ("transfer", "added"):
            line = attack(name) | ({"added": {"file": "f.npz"}} if name == "added" else {})
            found = flags(run((CLEAN, searched), (attack("pgd"), searched), (line, moved)))
            raised = {"transfer": "transfer_beats_search", "added": "broken_elsewhere"}[name]
            assert (raised in found) == flagged
            assert not flagged or "10 of 20 samples" in found[raised].message


def test_draws_that_differ_by_chance_regain_nothing_in_a_larger_ball() -> None:
    drawn = {"draws": [32] * 20, "label": [0] * 20}
    for correct, flagged in ((18, False), (31, True)):
        small = rows(20, **drawn | {"draws_correct": [15] * 20})
        large = rows(20, **drawn | {"draws_correct": [correct] * 10 + [15] * 10})
        found = flags(run((attack("pgd", 0.1), small), (attack("pgd", 0.2), large)))
        assert ("not_monotone_in_eps" in found) == flagged


def test_pictures_from_elsewhere_break_what_was_right_and_what_own_searches_of_their_threat_left() -> None:
    clean, added = rows(verdicts(90)), attack("added") | {"added": {"file": "f.npz"}}
    broken = rows([False] * 2 + verdicts(88, 98))
    for norm, left in (("l2", 90), ("linf", 50)):
        found = flags(run((CLEAN, clean), (attack("pgd", norm=norm), rows(verdicts(50))), (added, broken)))
        assert found["broken_elsewhere"].message.startswith(f"2 of {left} samples")
    wrong_already = rows([True] * 90 + [False] * 10)
    assert flags(run((CLEAN, clean), (added, wrong_already))) == {}
