from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustgen import attacks, registry
from robustgen.config import AttackSpec, CorruptionsSpec, Protocol
from robustgen.corruptions import CORRUPTIONS
from robustgen.data import DERIVED, SOURCES
from robustgen.threat import ThreatModel

FOLDER = Path(__file__).resolve().parent.parent / "attacks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_the_readme_says_what_the_folder_is_and_lists_exactly_what_is_there() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first.startswith("What a model must withstand")
    assert "code in robustgen/attacks" in first
    listed = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.yaml"))


def test_every_data_set_has_clean_and_quick() -> None:
    for name in ("clean", "quick"):
        protocol = registry.load_protocol(name)
        for source in ("digits", "mnist", "cifar10", "svhn", "mine.npz"):
            protocol.settings(source)


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_names_only_what_there_is(name: str) -> None:
    protocol = registry.load_protocol(name)
    assert protocol.name == name, "a protocol is found by its file's name"
    assert protocol.cost, "'robustgen show' says what a run will take"
    for data, settings in protocol.data.items():
        assert data == "any" or data in SOURCES
        assert set(settings.foreign) <= {*SOURCES, *DERIVED} - {data}
        _check_evaluations(protocol, data)


def _check_evaluations(protocol: Protocol, data: str) -> None:
    names = []
    for spec in protocol.evaluations:
        if isinstance(spec, AttackSpec):
            for eps in spec.eps or [protocol.settings(data).eps[spec.norm] * scale for scale in spec.scales]:
                attack = attacks.build(spec, ThreatModel(spec.norm, eps))
                names.append(attacks.evaluation_name(attack))
        if isinstance(spec, CorruptionsSpec):
            names += [f"{kind}-{severity}" for kind in spec.types for severity in spec.severities]
            assert all(CORRUPTIONS[kind].formula for kind in spec.types)
    assert len(set(names)) == len(names), "two evaluations would share a folder"


def test_a_published_protocol_is_the_whole_split_under_the_standard_cascade() -> None:
    published = [name for name in NAMES if re.match(r"(linf|l2|l1)-", name)]
    assert len(published) >= 5
    for name in published:
        protocol = registry.load_protocol(name)
        assert protocol.n is None
        (spec,) = [spec for spec in protocol.evaluations if isinstance(spec, AttackSpec)]
        for data in protocol.data:
            attack = attacks.build(spec, ThreatModel(spec.norm, protocol.settings(data).eps[spec.norm]))
            assert attacks.evaluation_name(attack) == f"autoattack-{name}"
