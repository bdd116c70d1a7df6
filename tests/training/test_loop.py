import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from recipes import only_checkpoint, sha256, tiny, tiny_jem, write
from rich.console import Console

from robustgen import classifiers, data, strict
from robustgen.errors import UserError
from robustgen.training import Diverged, checkpoint, loop
from robustgen.training.cross_entropy import CrossEntropy
from robustgen.training.loop import Training, learning_rate, train
from robustgen.training.recipe import Optimiser, Recipe


def steps_of_curve(cache: Path) -> list[int]:
    lines = only_checkpoint(cache).with_name("curve.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def train_and_be_killed(recipe: Path, out: Path, cache: Path) -> None:
    """Start a training in a process of its own and kill -9 it after its first real checkpoint."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from robustgen.training.loop import train\n"
        "train(sys.argv[1], out=sys.argv[2])"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(recipe), str(out)], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(3000):
            done = list(cache.glob("robustgen/training/*/curve.jsonl"))
            if process.poll() is not None or (done and '"step": 20' in done[0].read_text()):
                break
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the training ended before it could be killed"


def test_killed_training_ends_with_the_same_bits(tmp_path, cache):
    recipe = write(tmp_path, tiny_jem(steps=100))
    train_and_be_killed(recipe, tmp_path / "tiny", cache)
    assert not (tmp_path / "tiny" / "card.yaml").exists()
    reached = checkpoint.load(only_checkpoint(cache), torch.device("cpu"))
    assert 10 <= reached["step"] < 100
    train(recipe, tmp_path / "tiny")
    killed = sha256(tmp_path / "tiny")
    assert steps_of_curve(cache) == list(range(10, 101, 10))
    train(recipe, tmp_path / "undisturbed", fresh=True)
    assert sha256(tmp_path / "undisturbed") == killed


class Interrupted(Exception):
    """Stands for a crash inside a step."""


@pytest.mark.parametrize("step", [0, 3, 10, 17, 29])
def test_crash_at_any_step_changes_nothing(tmp_path, monkeypatch, step):
    recipe = write(tmp_path, tiny(augment={"subpixel": 0.5}, ema=0.9))
    train(recipe, tmp_path / "undisturbed")
    wanted = sha256(tmp_path / "undisturbed")
    loss, calls = CrossEntropy.loss, []

    def crash(self, *arguments):
        calls.append(1)
        if len(calls) == step + 1:
            raise Interrupted
        return loss(self, *arguments)

    monkeypatch.setattr(CrossEntropy, "loss", crash)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "tiny", fresh=True)
    torch.rand(7)  # the global generator's state must not matter
    train(recipe, tmp_path / "tiny")
    assert sha256(tmp_path / "tiny") == wanted
    assert len(calls) == 30 + 1 + step % 10  # the steps since the last checkpoint were done twice


def test_training_learns_and_leaves_a_loadable_folder(tmp_path):
    path = write(tmp_path, tiny(steps=150, tried=["nothing"], reference="none"))
    folder = train(path, tmp_path / "tiny")
    model = classifiers.load(folder)
    digits = classifiers_data("train")
    accuracy = (model(digits.images).argmax(1) == digits.labels).float().mean()
    assert accuracy > 0.7
    card = yaml.safe_load((folder / "card.yaml").read_text())
    assert card["tried"] == ["nothing"]
    assert card["weights"]["sha256"] == sha256(folder)
    assert "1,797" in card["provenance"]
    assert (folder / "recipe.yaml").read_text() == path.read_text()


def classifiers_data(split):
    from robustgen import data

    return data.load("digits", split)


def test_diverged_training_stops_at_its_last_good_checkpoint(tmp_path, cache, monkeypatch):
    loss, calls = CrossEntropy.loss, []

    def blow_up(self, *arguments):
        calls.append(1)
        value, parts = loss(self, *arguments)
        return (value * float("nan") if len(calls) >= 15 else value), parts

    monkeypatch.setattr(CrossEntropy, "loss", blow_up)
    with pytest.raises(Diverged) as error:
        train(write(tmp_path, tiny()), tmp_path / "tiny")
    text = str(error.value)
    assert "'tiny' stopped at step 14: the loss has diverged" in text
    assert f"the last good state is step 10, in {only_checkpoint(cache)}" in text
    assert "nan" in text
    assert "smaller learning rate" in text
    assert not (tmp_path / "tiny").exists()
    assert checkpoint.load(only_checkpoint(cache), torch.device("cpu"))["step"] == 10


def test_restarts_go_back_and_on_with_other_draws(tmp_path, cache, monkeypatch, capsys):
    loss, calls = CrossEntropy.loss, []

    def blow_up_once(self, model, x, y, generator):
        calls.append(generator.initial_seed())
        value, parts = loss(self, model, x, y, generator)
        return (value * 1e12 if len(calls) == 16 else value), parts

    monkeypatch.setattr(CrossEntropy, "loss", blow_up_once)
    train(write(tmp_path, tiny(restarts=1)), tmp_path / "tiny")
    assert len(calls) == 16 + 20  # back from step 15 to step 10
    assert not set(calls[10:16]) & set(calls[16:])
    assert "at step 15; back to step 10" in capsys.readouterr().err
    assert steps_of_curve(cache) == [10, 20, 30]


def test_huge_learning_rate_is_divergence_not_a_model(tmp_path):
    recipe = tiny(optimiser={"kind": "sgd", "lr": 1e6})
    with pytest.raises(Diverged, match="stopped at step"):
        train(write(tmp_path, recipe), tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"options": {"width": 0, "blocks": [1]}}, "fails on its first pictures"),
        ({"augment": {"shift": 8, "fill": "reflect"}}, "too small for this shift"),
    ],
)
def test_a_recipe_that_fits_no_pictures_is_refused_in_words(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        train(write(tmp_path, tiny(**changes)), tmp_path / "tiny")


@pytest.mark.parametrize("fault", ["self.relu(x, 1, 2, 3)", "self.rellu(x)", "{}[1]", "x.view(3, 5)"])
def test_own_code_that_fails_on_the_first_pictures_is_told_by_its_line(tmp_path, fault):
    recipe = write(tmp_path, tiny(arch="model.py:Net", options={}))
    (tmp_path / "model.py").write_text(f"""
from torch import nn

class Net(nn.Linear):
    def __init__(self, num_classes, input_shape):
        super().__init__(64, num_classes)
        self.relu = nn.ReLU()

    def forward(self, x):
        return {fault}
""")
    with pytest.raises(UserError, match="fails on its first pictures") as raised:
        train(recipe, tmp_path / "tiny")
    assert raised.value.details["where"] == f"{tmp_path.resolve() / 'model.py'}, line 10"


NET = """
import threading
import torch
from torch import nn
from robustgen.classifiers.base import Classifier

class Odd(nn.Identity):
    def get_extra_state(self):
        return 3

class Net({base}):
    def __init__(self, num_classes, input_shape):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), {layers})
        {more}

    def {forward}(self, x, sigma=None):
        return self.net(x)
"""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": "nn.AdaptiveAvgPool1d(num_classes)"}, "empty parameter list"),
        ({"layers": "nn.LazyLinear(num_classes)"}, "uninitialized parameter"),
        ({"more": "self.lock = threading.Lock()"}, "pickle"),
        ({"layers": "Odd(), nn.Linear(64, num_classes)"}, "tensors alone"),
        ({"layers": "nn.Linear(64, 12)"}, "does not return logits"),
        ({"base": "Classifier", "forward": "logits"}, "does not say its num_classes"),
        (
            {
                "base": "Classifier", "forward": "logits", "layers": "nn.Linear(64, 12)",
                "more": "self.num_classes, self.input_shape = 12, (1, 8, 8)",
            },
            "does not fit the data",
        ),
    ],
)  # fmt: skip
def test_own_code_that_no_report_could_judge_is_refused_before_it_is_trained(tmp_path, cache, changes, says):
    usual = {"base": "nn.Module", "layers": "nn.Linear(64, num_classes)", "forward": "forward", "more": ""}
    recipe = write(tmp_path, tiny(arch="model.py:Net", options={}))
    (tmp_path / "model.py").write_text(NET.format(**usual | changes))
    with pytest.raises(UserError) as raised:
        train(recipe, tmp_path / "tiny")
    assert says in str(raised.value)
    assert not list(cache.glob("robustgen/training/*/checkpoint.pt"))


@pytest.mark.parametrize("fresh", [False, True])
def test_what_own_code_draws_where_it_is_imported_hangs_on_the_seed_alone(tmp_path, cache, fresh):
    recipe = write(tmp_path, tiny(arch="model.py:Net", options={}, steps=1, seed=3))
    layers = "nn.Linear(64, num_classes)"
    code = NET.format(base="nn.Module", layers=layers, forward="forward", more="self.at = nn.Buffer(START)")
    (tmp_path / "model.py").write_text(code + "START = torch.rand(4)\n")
    torch.manual_seed(7)
    folder = train(recipe, tmp_path / "tiny", fresh=fresh)
    here = torch.rand(4)
    assert torch.equal(classifiers.load(folder).at, torch.rand(4, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(here, torch.rand(4, generator=torch.Generator().manual_seed(7)))


def test_a_denoiser_is_trained_by_denoising_alone(tmp_path, cache):
    with pytest.raises(UserError, match="trained by denoising alone") as raised:
        begin(tmp_path, tiny(arch="denoiser", options={"widths": [4], "blocks": 1}))
    assert raised.value.details["got"] == "cross-entropy"


def test_learning_rate_warms_up_and_falls_to_zero():
    spec = Optimiser(lr=1.0, warm_up=10)
    rates = [learning_rate(spec, step, 110) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[110] == pytest.approx(0.0)


def test_weights_that_are_no_numbers_are_never_published(tmp_path, monkeypatch):
    update = Training.update_average

    def poison(self):
        update(self)
        if self.done == 30:
            next(self.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Training, "update_average", poison)
    with pytest.raises(Diverged, match="stopped at step 30: the weights have diverged"):
        train(write(tmp_path, tiny()), tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("objective", [{"kind": "cross-entropy"}, {"kind": "n-fgsm", "eps": 0.02}])
def test_training_in_bf16_resumes_to_the_same_bits_and_learns(tmp_path, cache, monkeypatch, objective):
    monkeypatch.setattr(loop, "native_bfloat16", lambda device: True)
    recipe = write(tmp_path, tiny(precision="bf16", objective=objective, ema=0.9, steps=80))
    train(recipe, tmp_path / "undisturbed")
    wanted = sha256(tmp_path / "undisturbed")
    lines = only_checkpoint(cache).with_name("curve.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.8 * losses[0]
    step, calls = Training.step, []

    def crash(self):
        calls.append(self.done)
        if len(calls) == 24:
            raise Interrupted
        return step(self)

    monkeypatch.setattr(Training, "step", crash)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "tiny", fresh=True)
    train(recipe, tmp_path / "tiny")
    assert calls[24] == 20  # the last checkpoint
    assert sha256(tmp_path / "tiny") == wanted
    model = classifiers.load(tmp_path / "tiny")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    train(
        write(tmp_path / "other", tiny(objective=objective, ema=0.9, steps=80)), tmp_path / "tiny", fresh=True
    )
    assert sha256(tmp_path / "tiny") != wanted, "float32 gives other bits"


def test_a_machine_without_bfloat16_trains_in_float32_and_says_so(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(loop, "native_bfloat16", lambda device: False)
    asked = []
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: asked.append(k["enabled"]) or autocast(*a, **k))
    console = Console(file=io.StringIO())
    train(write(tmp_path, tiny(precision="bf16", steps=3)), tmp_path / "tiny", console=console)
    assert asked == [False] * 3
    assert "tiny: in float32, since this machine only emulates bfloat16" in console.file.getvalue()


def begin(folder: Path, recipe: dict[str, object]) -> Training:
    """A training before its first step."""
    read = strict.validate(Recipe, recipe, where="test")
    return Training(read, folder, data.load("digits", "train"), torch.device("cpu"), Console(quiet=True))


def published(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Path:
    """A trained model in models/ of a working directory of its own."""
    monkeypatch.chdir(folder)
    recipe = write(folder / "first", tiny(name="first", **changes))
    return train(recipe, folder / "models" / "first", fresh=True)


def test_a_warm_start_begins_with_the_weights_of_another_model(tmp_path, monkeypatch, cache):
    options = {"widths": [4], "blocks": 1}
    noisy = {"family": "softmax-noise", "options": options, "objective": {"kind": "denoising", "weight": 0}}
    first = classifiers.load(published(tmp_path, monkeypatch, arch="noisy-softmax", **noisy))
    changes = noisy | {"family": "cdn", "arch": "cdn", "objective": {"kind": "denoising"}}
    second = tiny(name="second", warm_start="first", **changes)
    begun = begin(tmp_path, second).model
    x = torch.rand(8, 1, 8, 8)
    assert torch.equal(begun.eval().logits(x), first.logits(x))
    own = {key: value for key, value in begun.state_dict().items() if key not in first.state_dict()}
    assert own
    assert not any(bool(value.any()) for value in own.values())


@pytest.mark.parametrize("arch", ["noisy-softmax", "resnet-softmax"])
def test_a_block_that_a_warm_start_has_not_begins_as_the_identity_and_learns(
    tmp_path, monkeypatch, cache, arch
):
    if arch == "noisy-softmax":
        few, more = ({"widths": [4], "blocks": blocks} for blocks in (1, 2))
        objective = {"kind": "denoising", "weight": 0}
    else:
        few, more = ({"width": 4, "blocks": blocks, "pool": 2} for blocks in ([1], [2]))
        objective = {"kind": "cross-entropy"}
    common = {"arch": arch, "objective": objective}
    first = classifiers.load(published(tmp_path, monkeypatch, options=few, **common))
    run = begin(tmp_path, tiny(name="second", warm_start="first", options=more, **common))
    x = torch.rand(8, 1, 8, 8)
    assert torch.equal(run.model.eval().logits(x), first.logits(x))
    before = {key: value.clone() for key, value in run.model.named_parameters()}
    for _ in range(3):
        run.step()
    own = {key: value for key, value in before.items() if key not in first.state_dict()}
    assert own
    for key, value in own.items():
        assert not torch.equal(dict(run.model.named_parameters())[key], value), key


def test_a_warm_start_without_normalisation_leaves_a_networks_own_as_it_begins(tmp_path, monkeypatch, cache):
    options = {"width": 4, "blocks": [1], "pool": 2}
    published(tmp_path, monkeypatch, options=options | {"norm": "none"})
    begun = begin(
        tmp_path, tiny(name="second", warm_start="first", options=options | {"norm": "batch"})
    ).model
    scales = {key: value for key, value in begun.state_dict().items() if key.endswith("running_var")}
    assert scales
    for key, value in scales.items():
        assert bool((value == 1).all())
        assert bool((begun.state_dict()[key.replace("running_var", "weight")] == 1).all())


def test_on_a_gpu_float32_is_float32_in_training_too(tmp_path, monkeypatch, cache):
    seen = []
    monkeypatch.setattr("robustgen.training.loop.make_exact", seen.append)
    begin(tmp_path, tiny())
    assert [device.type for device in seen] == ["cpu"]


def test_a_warm_start_that_does_not_fit_says_which_tensor(tmp_path, monkeypatch, cache):
    published(tmp_path, monkeypatch)
    wider = tiny(name="second", warm_start="first", options={"width": 8, "blocks": [1], "pool": 2})
    with pytest.raises(UserError, match="do not fit into this network") as raised:
        begin(tmp_path, wider)
    assert "second: warm_start: " in raised.value.details["where"]
    with pytest.raises(UserError, match="no model of the zoo named 'frist'") as raised:
        begin(tmp_path, tiny(name="second", warm_start="frist"))
    assert "did you mean first" in raised.value.details["remedy"]


def test_recipes_without_a_warm_start_keep_their_checkpoints(tmp_path):
    plain = strict.validate(Recipe, tiny(), where="test")
    assert plain.fingerprint() == strict.validate(Recipe, tiny(warm_start=None), where="test").fingerprint()
    assert plain.fingerprint() != strict.validate(Recipe, tiny(warm_start="a"), where="test").fingerprint()


def test_a_training_begins_anew_where_its_warm_start_was_trained_anew(tmp_path, monkeypatch, cache):
    published(tmp_path, monkeypatch)
    second = write(tmp_path / "second", tiny(name="second", warm_start="first"))
    before = sha256(train(second))
    first = published(tmp_path, monkeypatch, seed=1)
    assert sha256(train(second)) != before
    card = first / "card.yaml"
    card.write_text(card.read_text().replace("A network for tests.", "Other words."))
    assert begin(second.parent, yaml.safe_load(second.read_text())).done == 30, "words are no weights"


def test_a_warm_start_from_the_model_that_it_writes_is_refused_before_any_work(tmp_path, monkeypatch, cache):
    folder = published(tmp_path, monkeypatch)
    before = sha256(folder)
    again = write(tmp_path / "again", tiny(name="first", warm_start="first", seed=1))
    monkeypatch.setattr(data, "load", None)
    with pytest.raises(UserError, match="start from the model that it writes") as raised:
        train(again, fresh=True)
    assert raised.value.details["where"] == "first: warm_start"
    assert sha256(folder) == before


def test_layers_that_draw_by_themselves_have_a_stream_of_their_own(tmp_path, monkeypatch, cache):
    loss, seeds = CrossEntropy.loss, []

    def record(self, model, x, y, generator):
        seeds.extend([torch.initial_seed(), generator.initial_seed()])
        return loss(self, model, x, y, generator)

    monkeypatch.setattr(CrossEntropy, "loss", record)
    run = begin(tmp_path, tiny())
    run.step()
    run.step()
    assert len(set(seeds)) == 4
