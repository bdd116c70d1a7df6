"""A folder of the zoo with a network that nobody trained."""

import hashlib

import torch
import yaml
from safetensors.torch import save_file

from robustgen.classifiers import build

OPTIONS = {"num_classes": 10, "input_shape": [1, 8, 8], "width": 4, "blocks": [1], "pool": 2}
DIGITS = {"class_names": "0123456789", "input_shape": (1, 8, 8)}


def write_model(folder, tensors=None, **changes):
    """A folder of the zoo with an untrained network."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    tensors = build("resnet-softmax", OPTIONS, where="test").state_dict() if tensors is None else tensors
    save_file(tensors, folder / "weights.safetensors")
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    card = {"name": folder.name, "family": "softmax", "summary": "For tests.", "data": "digits"}
    card |= {"arch": "resnet-softmax", "options": OPTIONS, "weights": {"sha256": digest}}
    (folder / "card.yaml").write_text(yaml.safe_dump(card | changes))
    return folder
