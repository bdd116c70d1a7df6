import pytest
from untrained import write_model


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """One model in a workspace of its own, which is the working directory."""
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    return write_model(tmp_path / "models" / "net-digits")
