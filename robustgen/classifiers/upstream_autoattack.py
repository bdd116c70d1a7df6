"""What ``import autoattack`` means to robustbench: pyautoattack under upstream's signature.

The package autoattack is on no package index. pyautoattack is the same code, but it renamed arguments, takes
them by keyword only and returns the labels too, and robustbench calls upstream's form. This module stands in
for both ``autoattack`` and ``autoattack.state``, with the part of upstream's interface that robustbench uses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyautoattack
import pyautoattack.state
import torch

from robustgen.errors import UserError


class AutoAttack:
    """Upstream's AutoAttack (Croce and Hein 2020, arXiv:2003.01690)."""

    def __init__(
        self,
        model: torch.nn.Module,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: torch.device | str = "cuda",
        log_path: str | Path | None = None,
    ) -> None:
        if is_tf_model:
            raise UserError("TensorFlow models are not supported here", remedy="pass a torch.nn.Module")
        # None, not an empty list: pyautoattack takes a list to override the version's attacks.
        attacks = list(attacks_to_run) or None
        self._attack = pyautoattack.AutoAttack(
            model, attacks=attacks, device=device, eps=eps, norm=norm, seed=seed, version=version
        )
        self._attack.verbose = verbose
        self._log_path = log_path

    def run_standard_evaluation(
        self,
        x_orig: torch.Tensor,
        y_orig: torch.Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: Path | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The adversarial images; with `return_labels` also the labels they are given."""
        if state_path is not None and state_path.exists():
            raise UserError(
                "pyautoattack cannot resume a run from its state file",
                where=state_path,
                remedy="delete the file, or name another one",
            )
        with _logged_to(self._log_path, self._attack.logger):
            x_adv, y_adv = self._attack.run_standard_evaluation(
                x_orig, y_orig, batch_size=bs, state_path=state_path
            )
        return (x_adv, y_adv) if return_labels else x_adv


class EvaluationState(pyautoattack.state.EvaluationState):
    """The state file, read as robustbench reads it: it takes the mean of the flags, which bool lacks."""

    @classmethod
    def from_disk(cls, path: Path) -> EvaluationState:
        """The finished state in the file."""
        state = super().from_disk(path)
        state._robust_flags = state._robust_flags.float()
        return state


@contextmanager
def _logged_to(path: str | Path | None, log: logging.Logger) -> Iterator[None]:
    """Upstream appends its messages to a file; pyautoattack sends them to a logger, at level DEBUG."""
    if path is None:
        yield
        return
    handler, level = logging.FileHandler(path), log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()
