"""What every test may use. Tests that need ROBUSTGEN_DATA skip without it, each with its reason;
where ROBUSTGEN_REQUIRE_DATA is set (in CI), such a skip is a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from robustgen.places import as_path

ROOT = Path(__file__).resolve().parent.parent

# The nets of these tests are so small that a second thread only waits for the first.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets that are not carried by a package."""
    folder = os.environ.get("ROBUSTGEN_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    if os.environ.get("ROBUSTGEN_REQUIRE_DATA"):
        pytest.fail("ROBUSTGEN_REQUIRE_DATA is set, and ROBUSTGEN_DATA names no folder")
    pytest.skip("needs real data: set ROBUSTGEN_DATA to a folder with MNIST, cifar10 and textures")


@pytest.fixture(scope="session")
def bucket() -> Iterator[Path]:
    """A bucket of a server that speaks S3. One a session: clients are kept, with their server's address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket = as_path("s3://results")
        bucket.mkdir()
        yield bucket
    server.stop()


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and protocols are looked up from the working directory."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True)
def _same_generator() -> None:
    torch.manual_seed(0)
