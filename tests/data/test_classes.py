"""Some classes of a data set, and the others as foreign pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from robustgen import data, registry
from robustgen.errors import UserError
from robustgen.plan import plan


def test_the_classes_that_are_kept_are_numbered_anew_and_the_others_are_foreign() -> None:
    whole, some = data.load("digits"), data.load("digits:0,3,7-9")
    kept = torch.isin(whole.labels, torch.tensor([0, 3, 7, 8, 9]))
    assert torch.equal(some.images, whole.images[kept])
    assert some.class_names == ("0", "3", "7", "8", "9")
    assert [some.class_names[k] for k in some.labels] == [str(k) for k in whole.labels[kept].tolist()]
    assert (some.name, some.source) == ("digits:0,3,7-9", "digits:0,3,7-9")
    found = data.load_foreign("held-out", some).matched
    assert torch.equal(found.images, whole.images[~kept])
    assert (found.labels == -1).all()


def test_every_split_keeps_the_same_classes() -> None:
    for split in ("train", "calibration"):
        some = data.load("digits:0-7", split)
        assert len(some) == int((data.load("digits", split).labels < 8).sum())
        assert some.labels.max() == 7


@pytest.mark.parametrize("chosen", ["0-9", "3", "", "8-12", "a", "0-", "-1", "5-2", "0;1", "0-99999"])
def test_what_are_no_classes_is_said(chosen: str) -> None:
    with pytest.raises(UserError, match="not a selection of the classes of 'digits'") as raised:
        data.load(f"digits:{chosen}")
    assert "0 to 9" in str(raised.value)


def test_sets_without_classes_have_none_to_choose_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a selection of the classes of 'letters'"):
        data.load("letters:0-1")
    with pytest.raises(UserError, match="none is held out"):
        data.load_foreign("held-out", data.load("digits"))
    with pytest.raises(UserError, match="no data set named"):
        data.load("digit:0-7")


def test_a_protocol_has_the_settings_of_the_whole_set_and_the_held_out_classes_beside() -> None:
    some = data.load("digits:0-7")
    protocol = registry.load_protocol("ood")
    assert protocol.settings(some.name) == protocol.settings("digits")
    planned = {e.name: e for e in plan(protocol, some).evaluations}
    (held_out,) = [e for name, e in planned.items() if name == "ood-held-out"]
    assert held_out.foreign is not None
    assert len(held_out.foreign()) == held_out.size == len(data.load("digits")) - len(some)
    assert not any("held-out" in e.name for e in plan(protocol, data.load("digits")).evaluations)
