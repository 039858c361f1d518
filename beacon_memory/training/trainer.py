"""A training run: transformers' Trainer on the fold's objective, in a folder from which it can be resumed.

The folder is an adapter (of the newest checkpoint), with `run.json` (what is trained, and on what), `losses.jsonl`,
`loss.png`, `checkpoints/` and a `.lock` that is held while the run goes on. The base model is never written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from filelock import FileLock, Timeout
from transformers import SchedulerType, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from beacon_memory.config import BeaconConfig
from beacon_memory.errors import ConfigError, TrainingError
from beacon_memory.fold.fold import beacon_start, zero_row
from beacon_memory.fold.projections import PROJECTIONS
from beacon_memory.models.adapter import fill, read_adapter, save_adapter
from beacon_memory.models.model import BeaconModel
from beacon_memory.training.data import Corpus
from beacon_memory.training.examples import Examples, Mixture
from beacon_memory.training.objective import Example, Objective, Weights

RUN_FILE, LOSSES_FILE, PLOT_FILE, CHECKPOINTS = "run.json", "losses.jsonl", "loss.png", "checkpoints"
LOCK_FILE = ".lock"  # held while a run writes to the folder
STATE_FILE = "trainer_state.json"  # what Trainer writes last
LEARNED = ("beacons", "anchors")
COUNTED = 256  # scored tokens from which an example counts in full; below, by the root of their share


@dataclass(frozen=True)
class Plan:
    """A run's settings. Raises ConfigError."""

    steps: int = 1000
    learn: str = "beacons"  # or "anchors", the scorer; never both: what gates leak, beacons would not carry
    learning_rate: float = 3e-3
    schedule: str = "cosine"  # transformers' names: cosine, linear, constant_with_warmup, …
    warmup: int = 20
    rank: int = 32  # of the low-rank deltas; 0 trains full projections
    reach: int = 2  # rows before and behind its anchor that a slot sees; layout select only
    through: int | None = None  # newest windows through whose reading gradients flow; None: all
    accumulate: int = 1  # examples a step
    save_every: int = 50  # steps between checkpoints
    checkpointing: bool = False  # recompute activations: less memory, more time
    workers: int = 0  # processes that make the examples; 0: the one that trains
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is 1 or more, not {getattr(self, name)}")
        if self.learn not in LEARNED:
            raise ConfigError(f"what is learned is one of {', '.join(LEARNED)}, not {self.learn!r}")
        if min(self.rank, self.reach, self.warmup, self.workers) < 0 or self.learning_rate <= 0:
            raise ConfigError("rank, reach, warmup and workers are 0 or more, the learning rate is above 0")
        if self.schedule not in (known := [kind.value for kind in SchedulerType]):
            raise ConfigError(f"schedule is one of {', '.join(known)}, not {self.schedule!r}")
        if self.through is not None and self.through < 0:
            raise ConfigError(f"windows that gradients flow through are 0 or more, or None for all, not {self.through}")
        if self.reach and not self.rank:
            raise ConfigError("full projections see their own row alone: set reach to 0, or give a rank")


@dataclass(frozen=True)
class Moment:
    """Where a run stands."""

    step: int
    steps: int
    loss: float
    tokens: int
    tokens_per_second: float
    seconds_left: float


def train(
    model: BeaconModel,
    corpus: Corpus,
    out: str | Path,
    *,
    plan: Plan | None = None,
    mixture: Mixture | None = None,
    weights: Weights | None = None,
    resume: bool = False,
    progress: Callable[[Moment], None] | None = None,
) -> None:
    """Train the model's beacons and leave them as an adapter in the folder `out`.

    A model that carries an adapter goes on from its weights. `resume` goes on from the newest whole checkpoint in
    `out`, with the data that the run would have seen. Raises ConfigError, InputError, AdapterError, TrainingError.
    """
    if any(weight.is_meta for weight in model.lm.parameters()):
        raise TrainingError("some of the model's weights are on a disk or off its device: load it whole to train on it")
    plan, mixture, weights, out = plan or Plan(), mixture or Mixture(), weights or Weights(), Path(out)
    run = _described(model, corpus, plan=plan, mixture=mixture, weights=weights)
    examples = Examples(
        corpus, model, config=model.config, mixture=mixture, seed=plan.seed, count=plan.steps * plan.accumulate
    )
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(out / CHECKPOINTS),
        max_steps=plan.steps,
        per_device_train_batch_size=1,  # an example is a batch
        gradient_accumulation_steps=plan.accumulate,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.schedule,
        warmup_steps=plan.warmup,
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",  # the examples are drawn already
        save_steps=plan.save_every,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        seed=plan.seed,
        bf16=cuda and torch.cuda.is_bf16_supported(),
        use_cpu=not cuda and model.empty.device.type == "cpu",
        ddp_find_unused_parameters=True,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        dataloader_num_workers=plan.workers,
    )
    first = arguments.process_index == 0
    with _alone(out, first=first):
        newest = _newest(out, run, resume=resume)
        if first:
            (out / RUN_FILE).write_text(json.dumps(run, indent=1) + "\n")
        with trained(model, plan) as weights_trained:
            gated = plan.learn == "anchors"
            objective = Objective(
                model.beacons, config=model.config, weights=weights, gated=gated, through=plan.through
            )
            trainer = _Trainer(model, objective, arguments, examples, out)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(_Watch(out, plan.steps, progress))
            try:
                trainer.train(resume_from_checkpoint=str(newest) if newest else None)
                with torch.no_grad():
                    for parameter in weights_trained:  # what is kept is what is written
                        parameter.copy_(parameter.to(torch.bfloat16))
                if first:
                    trainer.keep(out, dtype=torch.bfloat16)
                    plot_losses(out)
            except OSError as exc:
                raise TrainingError(f"{out}: {exc}: the last whole checkpoint is kept, resume from it") from exc
    model.adapted(model.config)


def settings(
    model: BeaconModel, *, layout: str | None = None, anchors: str | None = None, overlap: int | None = None
) -> BeaconConfig:
    """The fold settings to train with: those asked for, else the adapter's; its scorer chooses anchors if there is one.

    A talk keeps its windows, whatever windows the training uses.
    """
    config, scorer = model.config, any(wrapped["k"].scorer is not None for wrapped in model.beacons.layers)
    layout = layout or config.layout
    if anchors is None:
        anchors = {"interleave": "last", config.layout: config.anchors}.get(layout, "learned" if scorer else "last")
    overlap = config.overlap if overlap is None else overlap
    return config.replace(layout=layout, anchors=anchors, overlap=overlap)


@contextmanager
def _alone(out: Path, *, first: bool) -> Iterator[None]:
    """Lock a run's folder for this run; the first of its processes does so. Raises TrainingError."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(out / LOCK_FILE).acquire(timeout=0) if first else nullcontext()
    except Timeout as exc:
        raise TrainingError(f"another run is writing to {out}: let it end, or choose another folder") from exc
    with held:
        yield


@contextmanager
def trained(model: BeaconModel, plan: Plan) -> Iterator[list[torch.nn.Parameter]]:
    """The weights a run trains; those of the beacons are made where the model does not carry them.

    Inside, gradients flow into them and nothing else.
    """
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)  # a run that is begun again begins the same
        found = _made(model, plan)
    wanted = {parameter: parameter.requires_grad for parameter in model.lm.parameters()}
    for parameter in wanted:
        parameter.requires_grad_(False)
    for parameter in found:
        parameter.requires_grad_(True)
    if plan.checkpointing:
        model.lm.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield found
    finally:
        model.lm.eval()
        if plan.checkpointing:
            model.lm.activation_checkpointing_disable()
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)
        for parameter in found:
            parameter.requires_grad_(False)


def _made(model: BeaconModel, plan: Plan) -> list[torch.nn.Parameter]:
    beacons, layout = model.beacons, model.config.layout
    # A scorer's bias changes no choice.
    scorers = [parameter for name, parameter in beacons.parameters().items() if name.endswith(".scorer.weight")]
    if plan.learn == "anchors":
        if len(scorers) < len(beacons.layers):
            raise ConfigError("anchors are learned from a scorer: fit one, and begin with it")
        return scorers
    if plan.reach and layout != "select":
        raise ConfigError(f"layout {layout!r} has beacon rows, which see by attention: set reach to 0")
    # A slot of `select` is a raw token's key and value: it asks nothing.
    names = PROJECTIONS[1:] if layout == "select" else PROJECTIONS
    for wrapped in beacons.layers:
        for name in names:
            if wrapped[name].trained:
                continue
            if plan.rank:
                wrapped[name].make_low_rank(plan.rank, reach=plan.reach)
            else:
                wrapped[name].make_full()
    if layout == "interleave" and beacons.embedding is None:
        beacons.embedding = torch.nn.Parameter(beacon_start(beacons).detach().clone())
    if layout == "shadow" and beacons.offset is None:
        beacons.offset = torch.nn.Parameter(zero_row(beacons.lm))
    return [parameter for name, parameter in beacons.parameters().items() if ".scorer." not in name]


def whole_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end, or None."""
    found = []
    for folder in (out / CHECKPOINTS).glob("checkpoint-*"):
        try:
            found.append((int(json.loads((folder / STATE_FILE).read_text())["global_step"]), folder))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return max(found)[1] if found else None


def plot_losses(out: Path) -> None:
    """Draw the run's loss curve as a PNG, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    logged = [json.loads(line) for line in (out / LOSSES_FILE).read_text().splitlines()]
    if not logged:
        return
    losses, width = [entry["loss"] for entry in logged], max(len(logged) // 40, 1)
    smooth = [
        sum(losses[max(i - width + 1, 0) : i + 1]) / len(losses[max(i - width + 1, 0) : i + 1])
        for i in range(len(losses))
    ]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    tokens = [entry["tokens"] for entry in logged]
    axes.plot(tokens, losses, linewidth=0.5, alpha=0.4, label="each step")
    axes.plot(tokens, smooth, linewidth=1.5, label=f"mean of {width} steps")
    axes.set_xlabel("tokens")
    axes.set_ylabel("loss (weighted, nats)")
    axes.legend()
    figure.savefig(out / PLOT_FILE, dpi=120)


class _Trainer(Trainer):  # type: ignore[misc]
    """Trainer with our loss, whose checkpoints hold the beacons and not the model."""

    def __init__(
        self, model: BeaconModel, objective: Objective, arguments: TrainingArguments, examples: Examples, out: Path
    ) -> None:
        super().__init__(
            model=objective, args=arguments, train_dataset=examples, data_collator=lambda one: {"example": one[0]}
        )
        self.model_accepts_loss_kwargs = False
        self._beacon_model = model
        self._out = out

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        example: Example = inputs["example"]
        self.state.num_input_tokens_seen += example.tokens * self.args.world_size
        # The few words of an answer make a noisy gradient, which would drown what hundreds of tokens say.
        told = min(int(example.scored.sum()) / len(example.tails), COUNTED)
        return model(example) * (told / COUNTED) ** 0.5

    def keep(self, folder: Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the beacons as an adapter."""
        own = self._beacon_model
        save_adapter(own.beacons, folder, config=own.config, model=own.fingerprint.model, dtype=dtype)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.keep(Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(*args, **kwargs)
            if self.args.should_save:
                self.keep(self._out, dtype=torch.bfloat16)
                plot_losses(self._out)
        except (OSError, RuntimeError, safetensors.SafetensorError) as exc:
            if whole_checkpoint(self._out) != folder:
                shutil.rmtree(folder, ignore_errors=True)
            raise TrainingError(
                f"checkpoint {folder.name} could not be written ({exc}): make room and resume from the one before"
            ) from exc

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        own = self._beacon_model
        _, tensors = read_adapter(resume_from_checkpoint, model=own.fingerprint.model)
        fill(own.beacons, tensors, origin=resume_from_checkpoint)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Writes down every step's loss, and reports progress."""

    def __init__(self, out: Path, steps: int, progress: Callable[[Moment], None] | None) -> None:
        self._file = out / LOSSES_FILE
        self._steps = steps
        self._progress = progress
        self._began: tuple[float, int, int] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Steps that an interrupted run took after its last checkpoint are taken again.
        known = self._file.read_text().splitlines() if state.global_step and self._file.exists() else []
        kept = [line for line in known if json.loads(line)["step"] <= state.global_step]
        self._file.write_text("".join(line + "\n" for line in kept))
        self._began = (time.monotonic(), state.global_step, state.num_input_tokens_seen)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or logs is None or "loss" not in logs or self._began is None:
            return
        entry = {"step": state.global_step, "tokens": state.num_input_tokens_seen, "loss": logs["loss"]}
        with self._file.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        if self._progress:
            seconds = max(time.monotonic() - self._began[0], 1e-9)
            pace = (state.global_step - self._began[1]) / seconds
            speed = (state.num_input_tokens_seen - self._began[2]) / seconds
            left = (self._steps - state.global_step) / max(pace, 1e-9)
            self._progress(
                Moment(state.global_step, self._steps, logs["loss"], state.num_input_tokens_seen, speed, left)
            )


def _described(model: BeaconModel, corpus: Corpus, **settings: Any) -> dict[str, Any]:
    """What makes a run this run, as plain JSON values."""
    digest = hashlib.sha256()
    for part in (*corpus.texts, *map(repr, corpus.dialogues), *map(repr, corpus.documents)):
        digest.update(part.encode())
    plain = {name: asdict(value) for name, value in settings.items()}
    about = {
        "model": model.fingerprint.model,
        "start": model.fingerprint.adapter,
        "config": model.config.to_dict(),
        "data": f"{corpus} ({digest.hexdigest()[:16]})",
        **plain,
    }
    described: dict[str, Any] = json.loads(json.dumps(about))
    return described


def _newest(out: Path, run: dict[str, Any], *, resume: bool) -> Path | None:
    """The checkpoint to go on from. Raises TrainingError for another run's folder, or one not to go on in."""
    newest = whole_checkpoint(out)
    if not resume:
        if newest is not None:
            raise TrainingError(f"{out} holds a run up to {newest.name}: resume it, or choose another folder")
        return None
    if newest is None:
        return None
    try:
        before = json.loads((out / RUN_FILE).read_text())
    except (OSError, ValueError) as exc:
        raise TrainingError(f"{out / RUN_FILE} cannot be read ({exc}): what that run was is not known") from exc
    for name in sorted({*before, *run}):
        ours, theirs = run.get(name), before.get(name)
        if name == "plan":  # a run may be made longer
            ours, theirs = ({**(r or {}), "steps": 0} for r in (ours, theirs))
        if ours != theirs:
            raise TrainingError(f"{out} was begun with another {name}: {theirs}, now {ours}; take another folder")
    return newest
