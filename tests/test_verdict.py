"""How the logits of several draws become one row; tests/test_worker.py has verdicts on stochastic models."""

from __future__ import annotations

import torch

from robustgen.verdict import combine_draws


def test_combined_logits_have_the_mean_softmax_and_the_mean_energy() -> None:
    answers = torch.randn(32, 50, 10, generator=torch.Generator().manual_seed(0)) * 20 - 4000
    # of logits near -4000 float32 keeps 2.4e-4 nats, and so much of the probabilities
    found, exact = combine_draws(answers).double(), answers.double()
    assert torch.allclose(found.softmax(1), exact.softmax(2).mean(0), rtol=3e-4, atol=1e-12)
    assert torch.allclose(found.logsumexp(1), exact.logsumexp(2).mean(0), atol=3e-4)
    assert torch.equal(combine_draws(answers[:1]), answers[0])
