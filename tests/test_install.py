"""The environment, the wheel and the Makefile: what a stranger gets from a fresh clone."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "lock" / "requirements.lock").read_text()


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


# The lock


def locked_versions():
    """Each locked distribution with its versions that hold for this Python and system."""
    found = {}
    for line in re.findall(r"^[A-Za-z0-9].*?(?= \\$)", LOCK, flags=re.M):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonical(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return found


def test_lock_has_names_versions_and_hashes_only():
    lines = LOCK.splitlines()
    entry = re.compile(r"[A-Za-z0-9._-]+==[^ ]+( ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?")
    assert [line for line in lines if not entry.fullmatch(line)] == []
    assert len(locked_versions()) > 100


def test_lock_holds_everything_that_the_project_names():
    locked = locked_versions()
    for requirement in map(Requirement, chain(PROJECT["dependencies"], *EXTRAS.values())):
        assert requirement.specifier.contains(locked[canonical(requirement.name)]), requirement


def test_lock_is_what_is_installed():
    differing = {
        name: (version, importlib.metadata.version(name))
        for name, version in locked_versions().items()
        if importlib.metadata.version(name).partition("+")[0] != version
    }
    assert differing == {}


def test_adv_lib_serves_tests_only():
    assert "adv-lib" in locked_versions()
    named = map(Requirement, chain(PROJECT["dependencies"], *EXTRAS.values()))
    assert "adv-lib" not in {canonical(requirement.name) for requirement in named}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_committed_file_names_a_registry_or_this_machine():
    # Split, so that this file does not name one either.
    here = f"{re.escape(str(ROOT.parent))}/(shared|{re.escape(ROOT.name)})/"
    patterns = ["index-" + "url", "pypi" + r"\.org", "file" + ":///", here]
    command = ["git", "grep", "-InE", "--untracked", "|".join(patterns), "--", "."]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, "")


# The Makefile


@pytest.mark.parametrize("target", ["test", "report", "lock"])
@pytest.mark.parametrize(
    ("script", "is_what"),
    [('case "$2" in *platform*) echo Python 3.9.1;; esac', "is Python 3.9.1"), (None, "is not there")],
)
def test_make_refuses_another_python_in_one_line(tmp_path, target, script, is_what):
    shutil.copytree(ROOT / "lock", tmp_path / "lock")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "another-python"
    if script:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    before = sorted(tmp_path.rglob("*"))
    command = ["make", target, f"PYTHON={python}"]
    # Under `make test` this make would take itself for a part of that one, and print more.
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert is_what in done.stderr
    assert f"make PYTHON=python3.12 {target}" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


# The wheel


def build(project, target, out):
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl" if target == "wheel" else "*.tar.gz"))


def package_data(wheel):
    prefix = "robustgen/_data/"
    return {name.removeprefix(prefix) for name in zipfile.ZipFile(wheel).namelist() if prefix in name}


@pytest.fixture
def project(tmp_path):
    """A checkout with a small zoo: one digits model and one of another data set."""
    root = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "_data")
    shutil.copytree(ROOT / "robustgen", root / "robustgen", ignore=ignored)
    for name in ("pyproject.toml", "hatch_build.py", "LICENSE", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, root)
    for model in ("cdn-digits", "cdn-cifar10"):
        (root / "models" / model).mkdir(parents=True)
        (root / "models" / model / "card.yaml").write_text("name: x\n")
        (root / "models" / model / "weights.safetensors").write_bytes(b"x")
    (root / "attacks").mkdir()
    (root / "attacks" / "quick.yaml").write_text("name: quick\n")
    (root / "notes.txt").write_text("not to be shipped\n")
    return root


CARRIED = {
    "attacks/quick.yaml",
    "models/cdn-digits/card.yaml",
    "models/cdn-digits/weights.safetensors",
    "models/cdn-cifar10/card.yaml",
}


def test_wheel_carries_cards_protocols_and_digits_weights(project, tmp_path):
    wheel = build(project, "wheel", tmp_path / "dist")
    names = zipfile.ZipFile(wheel).namelist()
    assert package_data(wheel) == CARRIED
    assert "robustgen/errors.py" in names
    assert {name.split("/")[0] for name in names} == {"robustgen", "robustgen-0.1.0.dist-info"}
    metadata = zipfile.ZipFile(wheel).read("robustgen-0.1.0.dist-info/METADATA").decode()
    assert "Requires-Python: <3.14,>=3.11" in metadata


def test_sdist_builds_the_same_wheel(project, tmp_path):
    sdist = build(project, "sdist", tmp_path / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = tmp_path / "robustgen-0.1.0"
    assert not (unpacked / "notes.txt").exists()
    assert package_data(build(unpacked, "wheel", tmp_path / "again")) == CARRIED


def test_editable_install_copies_no_data(project, tmp_path):
    code = f"from hatchling.build import build_editable; build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=project, check=True, capture_output=True)
    assert package_data(next(tmp_path.glob("*.whl"))) == set()


def test_this_checkout_installs_and_finds_its_models(tmp_path):
    wheel = build(ROOT, "wheel", tmp_path / "dist")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from robustgen import registry; print(registry.__file__, *registry.model_folders())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    place, *models = done.stdout.split()
    assert place.startswith(str(tmp_path))
    assert models == sorted(path.parent.name for path in ROOT.glob("models/*/card.yaml"))


# One small real thing from every outside package


@pytest.fixture
def problem():
    """A linear classifier of 4 classes, 3x8x8 images clear of 0 and 1, and the labels that it gives them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).eval()
    x = torch.rand(5, 3, 8, 8) * 0.4 + 0.3
    return model, x, model(x).argmax(1)


def broken(model, x, y):
    return (model(x).argmax(1) != y).all()


def test_torchattacks_pgd(problem):
    import torchattacks

    model, x, y = problem
    adversarial = torchattacks.PGD(model, eps=0.3, alpha=0.05, steps=20)(x, y)
    assert broken(model, adversarial, y)
    assert (adversarial - x).abs().max() <= 0.3 + 1e-6


def test_foolbox_pgd(problem):
    import foolbox

    model, x, y = problem
    attacked = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, adversarial, success = foolbox.attacks.LinfPGD()(attacked, x, y, epsilons=0.3)
    assert success.all()
    assert broken(model, adversarial, y)


def test_adv_lib_ddn_comes_near_the_exact_distance(problem):
    from adv_lib.attacks import ddn

    model, x, y = problem
    adversarial = ddn(model, x, y, steps=200, levels=None)
    assert broken(model, adversarial, y)
    logits, weight = model(x), model[1].weight
    gaps = logits.gather(1, y[:, None]) - logits
    exact = (gaps / (weight[y][:, None] - weight).norm(dim=-1)).scatter(1, y[:, None], torch.inf).amin(1)
    found = (adversarial - x).flatten(1).norm(dim=1)
    assert (found > exact * 0.999).all()
    assert (found < exact * 1.5).all()


def test_pyautoattack_apgd(problem):
    import pyautoattack

    model, x, y = problem
    attack = pyautoattack.AutoAttack(model, eps=0.3, attacks=["apgd-ce"], version="custom", seed=0)
    adversarial, labels = attack.run_standard_evaluation(x, y)
    assert broken(model, adversarial, y)
    assert torch.equal(model(adversarial).argmax(1), labels)


def test_diffusers_unet_denoises_shapes():
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    assert unet(torch.rand(2, 1, 8, 8), torch.tensor([1, 5])).sample.shape == (2, 1, 8, 8)


def test_timm_trains_a_step():
    import timm

    model = timm.create_model("test_resnet", num_classes=4)
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:pkg_resources")
def test_imagecorruptions_brightness():
    from imagecorruptions import corrupt

    image = np.full((32, 32, 3), 100, dtype=np.uint8)
    brighter = corrupt(image, corruption_name="brightness", severity=3)
    assert brighter.shape == image.shape
    assert brighter.mean() > 150


def test_robustbench_lists_its_zoo():
    from robustgen.classifiers.external import import_robustbench

    # The stale copy in torchattacks' wheel has 57 models, and no `benchmark`.
    robustbench = import_robustbench()
    from robustbench.model_zoo.cifar10 import linf

    assert len(linf) == 76
    assert callable(robustbench.benchmark)


def test_ray_runs_a_task():
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert ray.get(ray.remote(lambda a, b: a + b).remote(2, 3)) == 5
    finally:
        ray.shutdown()
