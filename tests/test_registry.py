import shutil
from pathlib import Path

import pytest

from robustgen import registry
from robustgen.errors import UserError

CARD = "name: {name}\nfamily: {family}\nsummary: s\ndata: digits\narch: resnet-softmax\n"
PROTOCOL = "name: {name}\nversion: 1\nsummary: s\ndata: {{any: {{}}}}\nevaluations: [{{kind: clean}}]\n"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "roots", lambda folder: [tmp_path / folder])
    for name, family in (("a-digits", "softmax"), ("b-digits", "cdn"), ("d-digits", "denoiser")):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "card.yaml").write_text(CARD.format(name=name, family=family))
    return tmp_path


def test_a_name_means_its_folder(workspace: Path):
    assert registry.resolve("a-digits") == [registry.ZooModel("a-digits", workspace / "models" / "a-digits")]


def test_a_folder_of_a_trained_model_is_a_model(workspace: Path):
    inside = workspace / "models" / "a-digits"
    assert registry.resolve(str(inside)) == registry.resolve("a-digits")
    outside = shutil.move(inside, workspace / "a-digits")
    [found] = registry.resolve(f"{outside}/")
    assert (found.name, str(found)) == ("a-digits", str(outside))
    assert registry.resolve(str(found)) == [found]  # as a report names it
    with pytest.raises(UserError, match="a card's name must be that of its folder"):
        registry.load_card(Path(shutil.move(outside, workspace / "other")))


def test_a_glob_means_the_classifiers_that_match(workspace: Path):
    assert [m.name for m in registry.resolve("*-digits")] == ["a-digits", "b-digits"]


def test_no_model_means_the_zoo_of_the_data_without_denoisers(workspace: Path):
    assert [m.name for m in registry.resolve_all([], "digits")] == ["a-digits", "b-digits"]
    with pytest.raises(UserError, match="no classifier for the data set 'svhn'"):
        registry.resolve_all([], "svhn")


def test_a_model_of_many_network_calls_has_to_be_named(workspace: Path):
    card = workspace / "models" / "b-digits" / "card.yaml"
    card.write_text(CARD.format(name="b-digits", family="score") + "calls: 120\n")
    assert [m.name for m in registry.resolve_all([], "digits")] == ["a-digits"]
    assert registry.named_only("digits") == {"b-digits": "many network calls a picture"}
    assert [m.name for m in registry.resolve_all(["b-digits"], "digits")] == ["b-digits"]
    assert [m.name for m in registry.resolve_all(["*-digits"], "digits")] == ["a-digits", "b-digits"]


def test_a_model_of_two_network_calls_has_not(workspace: Path):
    card = workspace / "models" / "b-digits" / "card.yaml"
    card.write_text(CARD.format(name="b-digits", family="softmax") + "calls: 2\n")
    assert [m.name for m in registry.resolve_all([], "digits")] == ["a-digits", "b-digits"]


def test_a_model_named_twice_runs_once(workspace: Path):
    assert len(registry.resolve_all(["a-digits", "a-*"], "digits")) == 1


def test_a_model_with_code_of_its_own_has_to_be_named_in_full(workspace: Path):
    card = workspace / "models" / "b-digits" / "card.yaml"
    card.write_text(CARD.format(name="b-digits", family="mine").replace("resnet-softmax", "model.py:Net"))
    assert [m.name for m in registry.resolve_all([], "digits")] == ["a-digits"]
    assert registry.named_only("digits") == {"b-digits": "code of its own"}
    with pytest.raises(UserError, match="name each model"):
        registry.resolve_all(["*-digits"], "digits")
    (model,) = registry.resolve_all(["b-digits"], "digits")
    assert registry.user_code(model) == workspace / "models" / "b-digits" / "model.py"


def test_an_unknown_name_is_answered_with_suggestions(workspace: Path):
    with pytest.raises(UserError, match="did you mean a-digits"):
        registry.resolve("a-digit")


@pytest.mark.parametrize(
    ("reference", "says"),
    [("mine.py", "as in mine.py:Net"), ("*-nothing", "'robustgen list models' names them")],
)
def test_a_file_without_a_name_and_a_pattern_of_nothing_do_not_list_the_zoo(
    workspace: Path, reference: str, says: str
):
    with pytest.raises(UserError) as refusal:
        registry.resolve(reference)
    assert says in str(refusal.value)
    assert "a-digits" not in str(refusal.value)


def test_a_file_reference(tmp_path: Path):
    file = tmp_path / "My_Net.py"
    file.write_text("")
    assert registry.resolve(f"{file}:make") == [registry.FileModel("my_net-make", file, "make")]
    with pytest.raises(UserError, match="no such file"):
        registry.resolve(f"{tmp_path / 'other.py'}:make")


def test_a_name_of_which_no_folders_name_is_left_is_model(tmp_path: Path):
    (tmp_path / "модель.py").write_text("Сеть = 1")
    (found,) = registry.resolve(f"{tmp_path / 'модель.py'}:Сеть")
    assert found.name == "model"


def test_outside_models_and_unknown_sources():
    (model,) = registry.resolve("robustbench:cifar10/Linf/Standard")
    assert model == registry.OutsideModel(
        "robustbench-cifar10-linf-standard", "robustbench", "cifar10/Linf/Standard"
    )
    with pytest.raises(UserError, match="did you mean timm"):
        registry.resolve("tim:resnet18")


def test_two_folders_of_one_name_are_an_error(workspace: Path, monkeypatch):
    other = workspace / "elsewhere" / "models"
    (other / "a-digits").mkdir(parents=True)
    (other / "a-digits" / "card.yaml").write_text(CARD.format(name="a-digits", family="softmax"))
    monkeypatch.setattr(registry, "roots", lambda folder: [workspace / folder, other])
    with pytest.raises(UserError, match="two models are named 'a-digits'"):
        registry.model_folders()


def test_an_entry_point_named_as_a_zoo_model_is_an_error(workspace: Path, monkeypatch):
    info = workspace / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[robustgen.models]\na-digits = theirs:net\n")
    monkeypatch.syspath_prepend(workspace)
    with pytest.raises(UserError, match="two models are named 'a-digits'"):
        registry.resolve("a-digits")
    assert registry.resolve(str(workspace / "models" / "a-digits"))[0].name == "a-digits"


def test_a_card_must_bear_its_folders_name(workspace: Path):
    (workspace / "models" / "a-digits" / "card.yaml").write_text(CARD.format(name="z", family="softmax"))
    with pytest.raises(UserError, match="must be that of its folder"):
        registry.load_card(workspace / "models" / "a-digits")


def test_a_protocol_must_bear_its_files_name(workspace: Path):
    (workspace / "attacks").mkdir(exist_ok=True)
    (workspace / "attacks" / "mine.yaml").write_text(PROTOCOL.format(name="linf-8-255"))
    with pytest.raises(UserError, match="name must be that of its file"):
        registry.load_protocol("mine")
    assert registry.load_protocol(str(workspace / "attacks" / "mine.yaml")).name == "linf-8-255"


def test_a_protocol_by_path_and_by_an_unknown_name(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(PROTOCOL.format(name="mine"))
    assert registry.load_protocol(str(file)).name == "mine"
    with pytest.raises(UserError, match="no protocol named"):
        registry.load_protocol("quik-ly")
