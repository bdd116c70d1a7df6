import torch
from untrained import OPTIONS, write_model

from robustgen.classifiers import fingerprint_model
from robustgen.registry import FileModel, ObjectModel, ZooModel, resolve


def test_fingerprints_follow_weights_options_and_code(zoo, tmp_path):
    ref = ZooModel("net-digits", zoo)
    first = fingerprint_model(ref)
    write_model(zoo, summary="Other words.")
    assert fingerprint_model(ref) == first
    write_model(zoo, options=OPTIONS | {"activation": "relu"})
    assert fingerprint_model(ref) != first
    write_model(zoo, {"w": torch.ones(3)})
    assert fingerprint_model(ref) != first
    path = tmp_path / "mine.py"
    path.write_text("net = 1")
    (mine,) = resolve(f"{path}:net")
    assert isinstance(mine, FileModel)
    before = fingerprint_model(mine)
    assert before == fingerprint_model(mine)
    path.write_text("net = 2")
    assert fingerprint_model(mine) != before
    assert fingerprint_model(FileModel("x", path, "other")) != fingerprint_model(mine)


def test_fingerprint_of_a_file_follows_what_it_imports_from_its_folder(tmp_path):
    (tmp_path / "beside_mine.py").write_text("value = 1")
    (tmp_path / "mine.py").write_text("import beside_mine\nnet = 1")
    (mine,) = resolve(f"{tmp_path / 'mine.py'}:net")
    before = fingerprint_model(mine)
    (tmp_path / "beside_mine.py").write_text("value = 2")
    assert fingerprint_model(mine) != before


class Scaled(torch.nn.Module):
    def __init__(self, scale, mean=(0.5,)):
        super().__init__()
        self.scale, self.mean = scale, mean
        self.generator = torch.Generator()

    def forward(self, x):
        return self.scale * (x - self.mean[0]).flatten(1)


def test_fingerprint_of_a_live_module_follows_what_was_set_by_hand():
    def fingerprint(*settings):
        return fingerprint_model(ObjectModel("live", torch.nn.Sequential(Scaled(*settings))))

    assert fingerprint(1.0) == fingerprint(1.0)
    assert fingerprint(1.0) != fingerprint(-1.0)
    assert fingerprint(1.0) != fingerprint(1.0, (0.4,))
