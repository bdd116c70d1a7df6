"""The training loop for any objective; a resumed training gives the same bits as an uninterrupted one."""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from robustgen import classifiers, data, strict
from robustgen.classifiers.base import Classifier, Denoiser, PlainClassifier
from robustgen.classifiers.user import user_code_error
from robustgen.disk import remove_stale
from robustgen.environment import make_exact, native_bfloat16, threads_for
from robustgen.errors import UserError, describe_error
from robustgen.registry import FileModel
from robustgen.training import Diverged, Objective, checkpoint, make_objective, publish
from robustgen.training.augment import augment
from robustgen.training.recipe import Optimiser, Recipe

LARGEST_LOSS = 1e8  # the limit of JEM's code, beyond which no training has recovered
REMEDY = "a smaller learning rate, a longer warm-up, or clip"
FAILS = "the network of this recipe fails on its first pictures"
LOG_EVERY = 10  # steps


def train(
    recipe_path: Path | str,
    out: Path | str | None = None,
    root: Path | str | None = None,
    *,
    device: str = "cpu",
    fresh: bool = False,
    console: Console | None = None,
) -> Path:
    """Train the model of a recipe and write weights.safetensors and card.yaml; returns their folder.

    ``out``: that folder, whose name becomes the model's (default: models/<name of the recipe>); ``root``: the
    folder of the data sets. An unfinished training resumes from its last checkpoint and, on the same kind
    of machine, gives the same bits as an uninterrupted one; ``fresh`` starts over, and replaces the model of
    another recipe. Raises UserError for an invalid recipe, a folder that holds the model of another one, a
    diverged loss, and a full disk.
    """
    recipe_path = Path(recipe_path)
    recipe = strict.read(Recipe, recipe_path)
    folder = Path(out) if out is not None else Path("models") / recipe.name
    card = publish.draft_card(recipe, folder)  # reports an invalid name before the training
    _check_warm_start(recipe, folder)
    console = console or Console(stderr=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # user code may draw random numbers when imported, here
        files = publish.source_files(recipe, recipe_path)  # read now: later edits are not what is trained
        if not fresh and folder.resolve() != recipe_path.parent.resolve():
            publish.check_same_training(recipe, files, folder)
        if fresh:
            checkpoint.remove(checkpoint.cache_folder(recipe, recipe_path.parent) / checkpoint.FILE)
        samples = data.load(recipe.data, "train", root=root)
        torch.set_num_threads(threads_for(samples.shape))
        run = Training(recipe, recipe_path.parent, samples, torch.device(device), console)
        files = publish.source_files(recipe, recipe_path) | files  # with what the code imports lazily
        run.finish()
    card |= {"options": run.options, "provenance": samples.provenance}
    if isinstance(run.trained, Classifier) and run.trained.calls_per_image > 1:
        card["calls"] = run.trained.calls_per_image
    if folder.resolve() == recipe_path.parent.resolve():
        for edited in publish.keep_edits(files, folder):
            console.print(f"{recipe.name}: a file was edited during the training; the edit is in {edited}")
    publish.publish(run.trained, card, folder, files, half=recipe.storage == "float16")
    return folder


def seeded(device: torch.device, *parts: object) -> torch.Generator:
    """A generator seeded with a hash of ``parts``, so that a step's draws do not depend on earlier steps."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))


def learning_rate(spec: Optimiser, step: int, total: int) -> float:
    """The learning rate of a step: linear warm-up, then constant or a half cosine down to 0."""
    if step < spec.warm_up:
        return spec.lr * (step + 1) / spec.warm_up
    if spec.schedule == "constant":
        return spec.lr
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (step - spec.warm_up) / max(1, total - spec.warm_up)))


def _check_warm_start(recipe: Recipe, folder: Path) -> None:
    """Raise UserError if a model would start from the weights that it overwrites: not repeatable."""
    if recipe.warm_start is None:
        return
    where = f"{recipe.name}: warm_start"
    if classifiers.zoo_folder(recipe.warm_start, where=where).resolve() == folder.resolve():
        raise UserError(
            "this training would start from the model that it writes", where=where,
            expected="another model than the one in the folder of this training", got=recipe.warm_start,
            remedy="another --out, or leave warm_start out",
        )  # fmt: skip


def _check_augment(recipe: Recipe, shape: tuple[int, int, int]) -> None:
    """Raise UserError if the images are too small for the reflection padding of ``augment.shift``."""
    side = min(shape[1:])
    if recipe.augment.fill == "reflect" and recipe.augment.shift >= side:
        raise UserError(
            "the pictures are too small for this shift with fill: reflect",
            where=f"{recipe.name}: augment.shift",
            expected=f"less than {side}, the side of the pictures", got=recipe.augment.shift,
            remedy="a smaller shift, or fill: zeros",
        )  # fmt: skip


class Training:
    """A training run: set up from its recipe, restored from its checkpoint if there is one, then finished."""

    def __init__(
        self, recipe: Recipe, folder: Path, samples: data.Dataset, device: torch.device, console: Console
    ) -> None:
        self.recipe, self.data, self.device, self.console = recipe, samples, device, console
        make_exact(device)
        shape = {"num_classes": len(samples.class_names), "input_shape": list(samples.shape)}
        self.options = recipe.options | shape
        self.code = None if recipe.code_file is None else (folder / recipe.code_file).resolve()
        _check_augment(recipe, samples.shape)
        self.bfloat16 = recipe.precision == "bf16" and native_bfloat16(device)
        if recipe.precision == "bf16" and not self.bfloat16:
            console.print(f"{recipe.name}: in float32, since this machine only emulates bfloat16")
        self.memory_format = torch.channels_last if recipe.precision == "bf16" else torch.contiguous_format
        try:
            self.assemble(folder)
        except Exception as error:
            raise self._setup_error("the network of this recipe cannot be trained", error) from None
        self.x, self.y = samples.images.to(device), samples.labels.to(device)
        self.total = recipe.total_steps(len(samples))
        self.done, self.restarts = 0, 0  # steps; returns to a checkpoint after divergence
        self.folder = checkpoint.cache_folder(recipe, folder)
        self.file = self.folder / checkpoint.FILE
        remove_stale(self.folder)  # a checkpoint with a replay buffer may take 100 MB
        if self.restore() and self.done < self.total:
            step = f"step {self.done} of {self.total}"
            console.print(f"{recipe.name}: resumed at {step} ({self.file})")
        elif self.done:
            console.print(f"{recipe.name}: already trained ({self.file}); --fresh trains it again")
        self.curve = checkpoint.Curve(self.folder / "curve.jsonl", self.done)

    def assemble(self, folder: Path) -> None:
        """Create the network, the moving average of its weights, the optimiser and the objective."""
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        self.model: Any = classifiers.build(recipe.arch, self.options, where=recipe.name, folder=folder)
        if isinstance(self.model, Denoiser) and recipe.objective.kind != "denoising":
            raise UserError(
                "a denoiser is trained by denoising alone", where=f"{recipe.name}: objective.kind",
                expected="denoising", got=recipe.objective.kind, remedy="another objective, or another arch",
            )  # fmt: skip
        if recipe.warm_start is not None:
            classifiers.warm_start_weights(self.model, recipe.warm_start, where=f"{recipe.name}: warm_start")
        self.plain = not isinstance(self.model, Classifier | Denoiser)
        if self.plain:
            self.model = PlainClassifier(self.model, len(self.data.class_names), self.data.shape)
        # only these are averaged and checked; an attention mask may hold -inf
        self.finite = [bool(t.isfinite().all()) for t in _tensors(self.model)]
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        publish.to_tensors(self.trained)
        if self.code is not None and not isinstance(self.model, Denoiser):
            self.check_user_code()
        for model in (self.model, self.average):
            model.to(self.device)
            model.to(memory_format=self.memory_format)
        self.optimiser = make_optimiser(recipe.optimiser, self.model)
        self.objective: Objective = make_objective(recipe.objective, self.data)

    def check_user_code(self) -> None:
        """Check the shapes and the output of a user's network, as a report will."""
        assert self.code is not None
        ref = FileModel(self.recipe.name, self.code, self.recipe.arch.partition(":")[2])
        classifiers.check_fit(self.model, ref, self.data.class_names, self.data.shape)
        try:
            classifiers.check_logits(copy.deepcopy(self.model).eval(), ref)
        except Exception as error:
            raise self._setup_error(FAILS, error) from None

    @property
    def trained(self) -> nn.Module:
        """The network with the averaged weights, without the adapter of a plain module."""
        return self.average.module if self.plain else self.average

    def finish(self) -> None:
        """Run the remaining steps; return to the last checkpoint if the loss diverges."""
        if self.done == 0:
            self.save()
        with Progress(console=self.console) as progress:
            task = progress.add_task(self.recipe.name, total=self.total, completed=self.done)
            while self.done < self.total:
                try:
                    parts = self.step()
                    saved = self.done % self.recipe.checkpoint_every == 0 or self.done == self.total
                    if saved:
                        self.save()
                except Diverged as error:
                    self.recover(error)
                    continue
                except Exception as error:
                    if self.done:
                        raise
                    raise self._setup_error(FAILS, error) from None
                if self.done % LOG_EVERY == 0 or self.done == self.total:
                    self.curve.add(self.done, parts)
                words = ", ".join(f"{key} {value:.4g}" for key, value in parts.items())
                progress.update(task, completed=self.done, description=f"{self.recipe.name}: {words}")
                if saved and not self.console.is_terminal:
                    self.console.print(f"{self.recipe.name}: step {self.done} of {self.total}: {words}")

    def _setup_error(self, what: str, error: Exception) -> Exception:
        """A UserError for a network that cannot be built or fails on its first batch; ``error`` itself if
        neither the options nor user code can be the cause."""
        if isinstance(error, UserError):
            return error
        # torch raises these for impossible options; user code may raise anything
        if self.code is None and not isinstance(error, RuntimeError | ValueError | IndexError):
            return error
        if self.code is not None:
            remedy = f"mend the file, or the options: {self.options}"
            return user_code_error(f"{what} (of shape {self.data.shape})", error, self.code, remedy=remedy)
        return UserError(
            what, where=self.recipe.name,
            expected=f"options with which {self.recipe.arch} takes pictures of shape {self.data.shape}",
            got=describe_error(error),
            remedy=f"mend the options: {self.recipe.options}",
        )  # fmt: skip

    def step(self) -> dict[str, float]:
        """One step of the optimiser; returns the loss and its parts."""
        recipe = self.recipe
        generator = seeded(self.device, recipe.seed, "step", self.done, self.restarts)
        # for dropout and other layers that use the global generator; another seed than ``generator``'s
        layers = seeded(torch.device("cpu"), recipe.seed, "layers", self.done, self.restarts)
        torch.manual_seed(layers.initial_seed())
        rows = self.batch_rows()
        x = augment(self.x[rows], recipe.augment, generator)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(recipe.optimiser, self.done, self.total)
        self.model.train()
        self.objective.progress = self.done / self.total
        x = x.contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss, parts = self.objective.loss(self.model, x, self.y[rows], generator)
        value = float(loss.detach())
        if not abs(value) <= LARGEST_LOSS:  # true for NaN
            raise Diverged(
                "the loss has diverged",
                expected=f"a number within {LARGEST_LOSS:g}",
                got=value,
                remedy=REMEDY,
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.optimiser.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optimiser.clip)
        self.optimiser.step()
        self.done += 1
        self.update_average()
        return {"loss": value, **parts}

    def batch_rows(self) -> Tensor:
        """Indices of this step's batch: every epoch has its own permutation, cut into full batches."""
        epoch, batch = divmod(self.done, self.recipe.steps_per_epoch(len(self.x)))
        generator = seeded(torch.device("cpu"), self.recipe.seed, "epoch", epoch)
        order = torch.randperm(len(self.x), generator=generator)
        return order[batch * self.recipe.batch : (batch + 1) * self.recipe.batch].to(self.device)

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the moving average; its decay is smaller early on, to forget the initial weights."""
        decay = min(self.recipe.ema or 0.0, self.done / (self.done + 10))
        for mean, now, finite in zip(_tensors(self.average), _tensors(self.model), self.finite, strict=True):
            if finite and mean.is_floating_point():
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    def recover(self, error: Diverged) -> None:
        """Return to the last checkpoint, to continue with other draws; raise if no restarts are left."""
        step, restarts = self.done, self.restarts
        self.restore()
        if restarts >= self.recipe.restarts:
            raise Diverged(
                f"training {self.recipe.name!r} stopped at step {step}: {error.what}",
                where=f"the last good state is step {self.done}, in {self.file}",
                **{k: error.details[k] for k in ("expected", "got")},
                remedy=f"change the recipe: {error.details['remedy']}",
            ) from None
        self.restarts = restarts + 1
        self.curve = checkpoint.Curve(self.folder / "curve.jsonl", self.done)
        self.console.print(f"{self.recipe.name}: {error.what} at step {step}; back to step {self.done}")

    def save(self) -> None:
        """Write the checkpoint; raise Diverged if a weight is not finite."""
        now = zip(_tensors(self.model), self.finite, strict=True)
        if not all(bool(t.isfinite().all()) for t, finite in now if finite):
            raise Diverged("the weights have diverged", expected="finite numbers", remedy=REMEDY)
        content = {
            "data": self.data.fingerprint, "step": self.done, "restarts": self.restarts,
            "model": self.model.state_dict(), "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(), "objective": self.objective.state_dict(),
        }  # fmt: skip
        checkpoint.save(self.file, content)

    def restore(self) -> bool:
        """Restore the state of the checkpoint; False if there is none."""
        content = checkpoint.load(self.file, self.device)
        if content is None:
            return False
        if content.get("data") != self.data.fingerprint:
            raise UserError(
                "the checkpoint of this training was made on other data",
                where=self.file,
                expected=f"{self.data.name} with the fingerprint {self.data.fingerprint}",
                got=content.get("data"),
                remedy="--fresh starts over; or name the --data-root that it was started with",
            )
        try:
            self.model.load_state_dict(content["model"])
            self.average.load_state_dict(content["average"])
            self.optimiser.load_state_dict(content["optimiser"])
            self.objective.load_state_dict(content["objective"])
            self.done, self.restarts = content["step"], content["restarts"]
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                "the checkpoint is of another version of this model",
                where=self.file,
                got=describe_error(error),
                remedy="delete the file; the training then starts anew",
            ) from None
        return True


def make_optimiser(spec: Optimiser, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser, with weight decay on matrices but not on biases and the scales of norm layers."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    decays = [(matrices, spec.weight_decay), (vectors, 0.0)]
    groups = [{"params": params, "weight_decay": decay} for params, decay in decays if params]
    if spec.kind == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=spec.lr)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
