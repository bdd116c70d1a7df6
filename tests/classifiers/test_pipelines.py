"""Diffusers pipelines as classifiers: against the schedulers' own arithmetic, on tiny ones built here."""

import json

import pytest
import torch
from torch import nn

from robustgen import registry
from robustgen.classifiers import load_model, pipelines
from robustgen.classifiers.pipelines import PipelineDenoiser
from robustgen.errors import UnsupportedError, UserError

diffusers = pytest.importorskip("diffusers")
NAMES = ("cat", "dog", "ship")
GREY, COLOUR = (1, 8, 8), (3, 16, 16)


def unet(classes=3, channels=1, **options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        num_class_embeds=classes,
        **options,
    ).eval()


def vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def pixels(folder, schedule=None, **options):
    """A class-conditional pipeline on pixels, saved."""
    pipeline = diffusers.DDPMPipeline(unet(**options), schedule or diffusers.DDPMScheduler())
    pipeline.save_pretrained(folder)
    return f"diffusers:{folder}"


def dit(folder):
    torch.manual_seed(1)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
    )
    nn.init.normal_(network.proj_out_2.weight, std=0.5)
    diffusers.DiTPipeline(network, vae(), diffusers.DDIMScheduler()).save_pretrained(folder)
    return f"diffusers:{folder}"


def stable_diffusion(folder):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz."]
    vocabulary += [f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz."]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=32
    )
    text = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=network,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return f"diffusers:{folder}"


# --- the denoiser --------------------------------------------------------------------------------


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_posterior_mean_is_the_schedulers_own(predicts, schedule):
    scheduler = diffusers.DDPMScheduler(
        prediction_type=predicts, beta_schedule=schedule, clip_sample=False, variance_type="fixed_small"
    )
    network = unet()
    condition = pipelines._label_condition
    abar = scheduler.alphas_cumprod
    denoiser = PipelineDenoiser(network, abar, predicts, condition, num_classes=3, input_shape=GREY)
    noisy, labels = torch.randn(2, *GREY), torch.tensor([0, 2])
    with torch.no_grad():
        for t in (3, 250, 700):
            out = network(noisy, t, class_labels=labels).sample
            expected = scheduler.step(out, t, noisy).pred_original_sample
            sigma = float(((1 - abar[t].double()) / abar[t].double()).sqrt())
            got = denoiser.denoise(noisy * (1 + sigma**2) ** 0.5, sigma, labels)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_time_is_interpolated_in_log_sigma():
    abar = diffusers.DDPMScheduler().alphas_cumprod
    denoiser = PipelineDenoiser(nn.Identity(), abar, "epsilon", dict, num_classes=3, input_shape=GREY)
    sigmas = ((1 - abar.double()) / abar.double()).sqrt()
    steps = torch.tensor([0, 1, 500, 999])
    torch.testing.assert_close(denoiser.time(sigmas[steps]), steps.double(), atol=1e-6, rtol=0)
    between = (sigmas[500] * sigmas[501]).sqrt()[None]
    torch.testing.assert_close(denoiser.time(between), torch.tensor([500.5], dtype=torch.float64))
    assert denoiser.levels.low == pytest.approx(float(sigmas[0]))
    with pytest.raises(UnsupportedError, match="outside the noise levels"):
        denoiser.denoise(torch.rand(1, *GREY), 1e4, torch.tensor([0]))
    with pytest.raises(UserError, match="needs labels"):
        denoiser.denoise(torch.rand(1, *GREY), 1.0)


def test_large_batches_are_split_without_a_trace(monkeypatch):
    abar = diffusers.DDPMScheduler().alphas_cumprod
    denoiser = PipelineDenoiser(
        unet(), abar, "epsilon", pipelines._label_condition, num_classes=3, input_shape=GREY
    )
    x, y = torch.randn(7, *GREY), torch.arange(7) % 3
    whole = denoiser.denoise(x, 0.7, y)
    monkeypatch.setattr(pipelines, "NETWORK_BATCH", 3)
    torch.testing.assert_close(denoiser.denoise(x, 0.7, y), whole)


# --- the three kinds of pipeline -----------------------------------------------------------------


@pytest.mark.parametrize(("make", "shape"), [(pixels, GREY), (dit, COLOUR), (stable_diffusion, COLOUR)])
def test_a_pipeline_from_a_folder_classifies_and_has_gradients(tmp_path, make, shape):
    model = load_model(make(tmp_path / "pipeline"), class_names=NAMES, input_shape=shape)
    x = torch.rand(2, *shape)
    logits = model(x)
    assert logits.shape == (2, 3)
    assert torch.equal(logits, model(x))  # the noise set is a part of the model
    assert len(set(logits[0].tolist())) == 3  # each class is told apart
    assert model.calls_per_image == 2 * 8 * 3
    assert not model.training
    direction = torch.randn_like(x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((model(x) * torch.tensor([1.0, -1.0, 0.0])).sum(), x)

    def difference(step):
        with torch.no_grad():
            return float((model.double()(step.double()) * torch.tensor([1.0, -1.0, 0.0])).sum())

    small = 1e-4 * direction
    slope = (difference(x.detach() + small) - difference(x.detach() - small)) / 2e-4
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=0.02)


def test_latents_are_the_mode_scaled(tmp_path):
    model = load_model(dit(tmp_path / "pipeline"), class_names=NAMES, input_shape=COLOUR)
    x = torch.rand(2, *COLOUR)
    coder = model.encode.vae
    expected = coder.encode(2 * x - 1).latent_dist.mode() * coder.config.scaling_factor
    torch.testing.assert_close(model.encode(x), expected)
    grey = model.encode(torch.full((1, 1, 4, 4), 0.25))  # another size and one channel
    torch.testing.assert_close(grey, model.encode(torch.full((1, *COLOUR), 0.25)))


def test_prompts_hold_the_names_of_the_classes(tmp_path):
    name = stable_diffusion(tmp_path / "pipeline")
    one, other = (
        load_model(name, class_names=names, input_shape=COLOUR) for names in (NAMES, ("cat", "dog", "plane"))
    )
    x = torch.rand(1, *COLOUR)
    same = (one(x) - other(x)).abs()[0]
    assert same[:2].max() < 1e-4 < same[2]


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names", "shape", "text"),
    [
        ({"classes": 5}, NAMES, GREY, r"does not fit the data(.|\n)*got: +5 classes"),
        ({"classes": None}, NAMES, GREY, "a network without classes"),
        ({"channels": 3}, NAMES, (2, 8, 8), "with this number of channels"),
        ({"schedule": "edm"}, NAMES, GREY, "unsupported noise schedule"),
    ],
)
def test_pipelines_that_do_not_fit(tmp_path, options, names, shape, text):
    if options.get("schedule"):
        options = {"schedule": diffusers.EDMEulerScheduler()}
    reference = pixels(tmp_path / "pipeline", **options)
    with pytest.raises(UserError, match=text):
        load_model(reference, class_names=names, input_shape=shape)


def test_a_latent_pipeline_of_another_kind_is_not_taken_for_pixels(tmp_path):
    coder = diffusers.VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=4)
    schedule = diffusers.DDIMScheduler()
    diffusers.LDMPipeline(coder, unet(channels=3), schedule).save_pretrained(tmp_path / "pipeline")
    with pytest.raises(UserError, match="a pipeline of an unsupported kind"):
        load_model(f"diffusers:{tmp_path / 'pipeline'}", class_names=NAMES, input_shape=COLOUR)


def test_a_null_label_more_is_no_class(tmp_path):
    reference = pixels(tmp_path / "pipeline", classes=4)
    assert load_model(reference, class_names=NAMES, input_shape=GREY).num_classes == 3


def test_pickled_weights_are_not_read(tmp_path):
    pixels(tmp_path / "pipeline")
    weights = tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(unet().state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match=r"could not be loaded(.|\n)*safetensors"):
        load_model(f"diffusers:{tmp_path / 'pipeline'}", class_names=NAMES, input_shape=GREY)


@pytest.mark.parametrize("place", ["pipeline", "part", "library"])
def test_a_pipeline_with_code_of_its_own_is_refused_and_nothing_runs(tmp_path, monkeypatch, place):
    folder, mark = tmp_path / "pipeline", tmp_path / "it-ran"
    pixels(folder)
    index = json.loads((folder / "model_index.json").read_text())
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Net: pass\n"
    if place == "pipeline":
        index["_class_name"] = ["evil", "Net"]
        (folder / "evil.py").write_text(code)
    elif place == "part":  # diffusers looks for unet/diffusers.py first
        (folder / "unet" / "diffusers.py").write_text(code)
    else:  # a module that could be imported
        index["unet"] = ["evil_library", "Net"]
        (tmp_path / "evil_library.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="contains code, which robustgen does not run"):
        load_model(f"diffusers:{folder}", class_names=NAMES, input_shape=GREY)
    assert not mark.exists()


def test_an_id_that_cannot_be_fetched_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"nobody/nothing could not be loaded(.|\n)*diffusers:FOLDER"
    ) as error:
        load_model("diffusers:nobody/nothing", class_names=NAMES, input_shape=GREY)
    assert "Traceback" not in str(error.value)


def test_diffusers_is_a_model_source():
    (model,) = registry.resolve("diffusers:some/DiT-XL")
    assert (model.library, model.model, model.name) == ("diffusers", "some/DiT-XL", "diffusers-some-dit-xl")
