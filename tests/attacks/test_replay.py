"""The reference's draws; that its verdicts come of them is tested beside each attack."""

import torch

from robustgen.attacks.replay import ReferenceDraws


def test_reference_draws_are_torchs_for_the_active_rows() -> None:
    draws = ReferenceDraws(4)
    draws.active = torch.tensor([True, False, True, False])
    torch.manual_seed(1)
    shared, own = draws.shared(2), draws.uniform(3)
    torch.manual_seed(1)
    assert torch.equal(shared, torch.rand(2).expand(4, 2))
    assert torch.equal(own[[0, 2]], torch.rand(2, 3))
    assert not own[[1, 3]].any()
