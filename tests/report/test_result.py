"""The Python door: a live module or names in, a data frame and a table out."""

import csv

import pandas as pd
import pytest
import torch
from torch import nn

import robustgen
from robustgen import registry
from robustgen.errors import UserError
from robustgen.store import RunStore


class Template(nn.Module):
    """The nearest mean picture of a class, by inner products; 88 % of digits or so."""

    def __init__(self):
        super().__init__()
        train = robustgen.load_data("digits", "train")
        means = torch.stack([train.images[train.labels == k].mean(0) for k in range(10)])
        self.linear = nn.Linear(64, 10)
        self.linear.weight.data = 2 * means.flatten(1)
        self.linear.bias.data = -means.flatten(1).square().sum(1)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    model = Template().train()
    folder = tmp_path_factory.mktemp("evaluated")
    found = robustgen.evaluate([model, "softmax-digits"], protocol="clean", out=folder, n=50)
    assert model.training  # the user's own is left as it was
    assert all(p.requires_grad for p in model.parameters())
    return found


def test_a_live_module_is_evaluated_beside_the_zoo(report):
    test = robustgen.load_data("digits").slice(0, 50)
    expected = float((Template()(test.images).argmax(1) == test.labels).float().mean())
    frame = report.to_frame().set_index(["model", "evaluation", "variant", "metric"])
    assert frame.loc[("template", "clean", "", "accuracy"), "value"] == pytest.approx(expected)
    assert 0.7 < expected < 1
    assert frame.loc[("softmax-digits", "clean", "", "accuracy"), "n"] == 50


def test_the_frame_is_the_csv(report):
    frame = report.to_frame()
    with (report.folder / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(frame.columns) == list(rows[0])
    assert [str(v) for v in frame["value"]] == [row["value"] for row in rows]
    assert isinstance(report.flags(), pd.DataFrame)
    assert set(report.flags()["severity"]) <= {"info", "warning", "error"}


def test_it_shows_itself(report):
    text, html = str(report), report._repr_html_()
    for said in (text, html):
        assert "softmax-digits" in said
        assert "template" in said
        assert "Clean: accuracy" in said
    assert html.count("<tr>") == len([line for line in text.splitlines() if ": " in line]) + 1
    assert report.page().read_text().startswith("<!doctype html>")


def test_names_do_not_run_in_a_notebook(report):
    hostile = "<script>alert(1)</script>"
    content = report.content | {"models": [m | {"name": hostile} for m in report.content["models"][:1]]}
    content["metrics"] = [m | {"model": hostile} for m in content["metrics"] if m["model"] == "template"]
    shown = type(report)(report.folder, content, {hostile: hostile})._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_other_weights_are_another_model(report, tmp_path):
    model = Template()
    again = robustgen.evaluate(model, protocol="clean", out=tmp_path, n=20)
    assert list(again.to_frame()["model"].unique()) == ["template"]
    with torch.no_grad():
        model.linear.bias += 1e-3 * torch.arange(10)
    with pytest.raises(UserError, match="holds another run"):
        robustgen.evaluate(model, protocol="clean", out=tmp_path, n=20)


def test_two_modules_of_one_class_need_names(tmp_path):
    with pytest.raises(UserError, match="both be named 'template'"):
        robustgen.evaluate([Template(), Template()], protocol="clean", out=tmp_path)
    found = robustgen.evaluate({"one": Template(), "other": Template()}, protocol="clean", out=tmp_path, n=10)
    assert list(found.to_frame()["model"].unique()) == ["one", "other"]


@pytest.mark.parametrize("n", [0, -5, 2.5, "5"])
def test_a_number_of_pictures_that_is_none_is_refused(tmp_path, n):
    with pytest.raises(UserError, match="n must be a positive integer") as error:
        robustgen.evaluate("softmax-digits", protocol="clean", out=tmp_path, n=n)
    assert "1 or more" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("models", [[], len, [3], {"a": "softmax-digits.pt"}])
def test_what_is_no_model_is_refused(tmp_path, models):
    with pytest.raises(UserError, match=r"no model|not a model"):
        robustgen.evaluate(models, protocol="clean", out=tmp_path, n=10)


def test_a_command_says_that_it_cannot_name_an_object(report):
    (store,) = [s for s in map(RunStore.read, report.folder.glob("runs/*")) if s.model == "template"]
    with pytest.raises(UserError, match=r"as an object(.|\n)*FILE\.py:NAME"):
        registry.resolve(store.environment["reference"])
