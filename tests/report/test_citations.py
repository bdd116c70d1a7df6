"""A report names whom it stands on: every key leads to an entry, every entry is well formed."""

import re

import pytest

from robustgen import attacks
from robustgen.report import citations
from robustgen.report.citations import Citation

TABLES = (citations.ATTACKS, citations.FAMILIES, citations.DATA, citations.METRICS, citations.SCORES)


def test_every_key_has_its_entry_and_every_entry_its_use():
    entries = citations._entries()
    named = {key for table in TABLES for keys in table.values() for key in keys} | {citations.SPARSE}
    assert named == set(entries)


@pytest.mark.parametrize(("key", "entry"), citations._entries().items())
def test_entries_are_bibtex(key, entry):
    assert entry.count("{") == entry.count("}")
    fields = dict(re.findall(r"(\w+) = \{((?:[^{}]|\{[^{}]*\})*)\}", entry))
    assert {"title", "author", "year"} <= fields.keys()
    first = re.sub(r"\W", "", fields["author"].partition(",")[0]).lower()
    assert key.startswith(first[:4])
    assert fields["year"] in key
    if "eprint" in fields:  # yymm.number, and no work is cited before it was written
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"])
        assert 2000 + int(fields["eprint"][:2]) <= int(fields["year"])


def test_every_attack_of_our_own_is_somebodys():
    for name in attacks.ATTACKS:
        if name != "noise":
            assert list(citations._attack({"attack": name, "norm": "linf"})), name


def test_a_report_cites_what_it_used_and_nothing_else():
    content = {
        "models": [
            {
                "name": "mine", "family": "custom",
                "evaluations": [
                    {"kind": "clean", "data": "cifar10"},
                    {"kind": "attack", "data": "cifar10", "attack": "apgd-ce-i20", "norm": "l1"},
                    {"kind": "attack", "data": "cifar10", "attack": "pgd-mine", "norm": "l1", "code": "ab"},
                ],
            },
            {"name": "cdn-cifar10", "family": "cdn", "evaluations": []},
        ],
        "metrics": [
            {"metric": "ece", "variant": ""}, {"metric": "auroc", "variant": "energy"},
            {"metric": "nll", "variant": ""},
        ],
    }  # fmt: skip
    found = citations.citations(content)
    assert {c.key: c.used_for for c in found} == {
        "croce2020reliable": ("apgd-ce-i20",),
        "croce2021mind": ("apgd-ce-i20 in L1",),
        "guo2017calibration": ("ece",),
        "liu2020energy": ("the score energy",),
        "thiry2024classification": ("cdn-cifar10",),
        "krizhevsky2009learning": ("cifar10",),
    }
    assert all(isinstance(c, Citation) and c.bibtex.startswith("@") for c in found)
