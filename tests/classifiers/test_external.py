import base64
import hashlib
import importlib.metadata
import json
import os
import pickle
import sys

import pytest
import torch

from robustgen.classifiers import external
from robustgen.errors import UserError

EPS = 8 / 255


@pytest.fixture
def weights_cache(tmp_path, monkeypatch):
    """An empty folder in place of torch's cache of downloaded weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub"


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_unknown_library_is_an_error():
    with pytest.raises(UserError, match=r"no model source named 'tim'(.|\n)*such as timm"):
        external.load("tim", "resnet18")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'robustgen\[timm\]'"):
        external.load("timm", "resnet18")


# torchvision


def save_torchvision(cache, weights, module):
    path = cache / "checkpoints" / weights.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(module.state_dict(), path)


def test_torchvision_normalises_inside_the_module(weights_cache, images):
    from torchvision import models

    bare = models.get_model("squeezenet1_1").eval()
    save_torchvision(weights_cache, models.SqueezeNet1_1_Weights.IMAGENET1K_V1, bare)
    module = external.load("torchvision", "squeezenet1_1/IMAGENET1K_V1")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert not module.training
    torch.testing.assert_close(module(images), bare((images - mean) / std))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "no torchvision classifier named 'resnet19'"),
        ("fasterrcnn_resnet50_fpn", "no torchvision classifier"),
        ("resnet18/IMAGENET1K_V9", "no set of weights for torchvision's resnet18 named 'IMAGENET1K_V9'"),
    ],
)
def test_torchvision_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        external.load("torchvision", name)


def test_pickled_code_is_not_run(weights_cache):
    from torchvision import models

    weights = models.SqueezeNet1_1_Weights.DEFAULT
    path = weights_cache / "checkpoints" / weights.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save({"hook": print}, path)
    with pytest.raises(UserError, match="runs no pickled code") as caught:
        external.load("torchvision", "squeezenet1_1")
    assert external.TENSORS_ONLY not in os.environ
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)


def test_failed_download_says_where_to_place_the_file(weights_cache, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(UserError, match=r"no network(.|\n)*place its weights at .*squeezenet1_1-.*pth"):
        external.load("torchvision", "squeezenet1_1")


# timm


def test_timm_normalises_with_the_weights_own_config(tmp_path, images):
    import timm
    from safetensors.torch import save_file

    bare = timm.create_model("test_resnet", pretrained=False, num_classes=10).eval()
    save_file(bare.state_dict(), tmp_path / "model.safetensors")
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    config = {
        "architecture": "test_resnet",
        "num_classes": 10,
        "pretrained_cfg": {"mean": mean, "std": std, "input_size": [3, 32, 32], "num_classes": 10},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = external.load("timm", f"local-dir:{tmp_path}")
    expected = bare((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    assert not module.training
    torch.testing.assert_close(module(images), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", r"no timm model named 'resnet19'(.|\n)*resnet18"),
        ("resnet18.nobody", r"untrained model would be evaluated(.|\n)*resnet18\.a1_in1k"),
        ("local-dir:nowhere", "timm:local-dir:nowhere could not be loaded"),
        ("elsewhere:resnet18", "Unknown model source"),
    ],
)
def test_timm_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        external.load("timm", name)


# robustbench


def test_robustbench_loads_a_checkpoint_of_its_zoo(tmp_path, images):
    external.import_robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    zoo = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.Linf]
    # The whole list: the stale copy in torchattacks' wheel has 57.
    assert len(zoo) == 76
    bare = zoo["Standard"]["model"]().eval()
    path = tmp_path / "cifar10" / "Linf" / "Standard.pt"
    path.parent.mkdir(parents=True)
    torch.save(bare.state_dict(), path)
    module = external.load_robustbench("cifar10/Linf/Standard", model_dir=tmp_path)
    short = external.load_robustbench("Standard", model_dir=tmp_path)
    assert not module.training
    torch.testing.assert_close(module(images), bare(images))
    torch.testing.assert_close(short(images), bare(images))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Standrad", r"no robustbench model for cifar10/Linf named 'Standrad'(.|\n)*Standard"),
        ("cifar10/linf/Standard", "cifar10/Linf, cifar10/L2"),
        ("cifar10/Standard", "NAME or DATASET/THREAT/NAME"),
    ],
)
def test_robustbench_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        external.load("robustbench", name)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder in which a robustbench of two files is installed, as its RECORD has them."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"real").digest()).rstrip(b"=").decode()
    info = tmp_path / "robustbench-1.1.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: robustbench\nVersion: 1.1.1\n")
    (info / "RECORD").write_text(f"a.py,sha256={digest},4\nb.py,sha256={digest},4\n{info.name}/RECORD,,\n")
    (tmp_path / "a.py").write_bytes(b"real")
    distribution = importlib.metadata.Distribution.at(info)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: distribution)
    return tmp_path


@pytest.mark.parametrize(("second_file", "differing"), [(b"real", 0), (b"stale", 1), (None, 1)])
def test_check_robustbench_compares_hashes(installed, second_file, differing):
    if second_file is not None:
        (installed / "b.py").write_bytes(second_file)
    if not differing:
        external.check_robustbench()
        return
    with pytest.raises(UserError) as caught:
        external.check_robustbench()
    assert caught.value.details["got"] == "1 of them missing or different"
    assert "pip install --force-reinstall --no-deps robustbench==1.1.1" in str(caught.value)


def test_the_installed_robustbench_is_its_own():
    external.check_robustbench()
