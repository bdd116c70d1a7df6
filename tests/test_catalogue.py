"""What ``robustgen show`` says where there is nothing to show; test_cli.py has the rest."""

import pytest

from robustgen.catalogue import show
from robustgen.errors import UserError


def test_a_model_without_a_card_is_told_from_an_unknown_name():
    with pytest.raises(
        UserError, match=r"only models with a card.*\n(.*\n)*.*'robustgen check mine.py:linear'"
    ):
        show("mine.py:linear")
