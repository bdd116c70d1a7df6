import pytest
from recipes import tiny, write

from robustgen.errors import UserError
from robustgen.training.loop import train
from robustgen.training.recipe import Recipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "did you mean epochs"),
        ({"epochs": 3}, "either epochs or steps"),
        ({"steps": None}, "either epochs or steps"),
        ({"objective": {"kind": "magic"}}, "objective"),
        ({"objective": {"kind": "adversarial", "eps": 0.1}}, "step_size"),
        ({"data": "digitz"}, "digits"),
        ({"arch": "resnet"}, "resnet-softmax"),
        ({"options": {"widht": 3}}, "widht"),
        ({"options": {"norm": "layer"}}, "batch, group, none"),
        ({"optimiser": {"lr": 0}}, "optimiser.lr"),
        ({"precision": "fp16"}, "precision"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"objective": {"kind": "sgld", "buffer": 2**31}}, "objective.sgld.buffer"),
        ({"objective": {"kind": "n-fgsm"}}, "eps"),
        ({"objective": {"kind": "n-fgsm", "eps": 0}}, "eps"),
        ({"objective": {"kind": "n-fgsm", "eps": 0.1, "steps": 3}}, "steps"),
    ],
)
def test_wrong_recipes_are_explained(tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        train(write(tmp_path, tiny(**changes)), tmp_path / "tiny")
    assert message in str(error.value)
    assert not (tmp_path / "tiny").exists()


def test_absent_recipe_and_wrong_name_of_the_folder(tmp_path):
    with pytest.raises(UserError, match="cannot read the file"):
        train(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="the value of 'name' is not valid"):
        train(write(tmp_path, tiny()), tmp_path / "My Model")


def test_length_in_epochs_counts_full_batches():
    recipe = Recipe(**tiny(steps=None, epochs=3, batch=32))
    assert recipe.steps_per_epoch(100) == 3
    assert recipe.total_steps(100) == 9
    assert recipe.steps_per_epoch(5) == 1
    assert Recipe(**tiny(steps=7)).total_steps(100) == 7


def test_fingerprint_sees_what_decides_the_weights_and_no_words():
    first = Recipe(**tiny()).fingerprint()
    for words in (
        {"summary": "x"},
        {"tried": ["x"]},
        {"published": ["x"]},
        {"reference": "x"},
        {"licence": "MIT"},
    ):
        assert Recipe(**tiny(**words)).fingerprint() == first
    for change in (
        {"seed": 1},
        {"batch": 31},
        {"ema": 0.5},
        {"augment": {"flip": True}},
        {"restarts": 1},
        {"precision": "bf16"},
    ):
        assert Recipe(**tiny(**change)).fingerprint() != first
    assert Recipe(**tiny()).fingerprint("00ff") != first
    assert Recipe(**tiny(augment={"cutout": 2})).fingerprint() != first


def test_a_training_begun_before_cutout_came_goes_on():
    assert Recipe(**tiny()).fingerprint() == "3925f62dcc7a596e"  # by the commit before it
