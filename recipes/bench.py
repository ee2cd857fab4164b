r"""Pruning methods compared on one network and data set: two tables and a plot.

    python recipes/bench.py choice --network acsp_lightning.zoo.resnet56 --weights FILE \
        --data DIR --out OUT
    python recipes/bench.py whole  ...the same...  --tuning oneshot --epochs 8
    python recipes/bench.py whole  ...the same...  --tuning layerwise --layers 3
    python recipes/bench.py ablation  ...the same...
    python recipes/bench.py volume  ...the same...
    python recipes/bench.py residual  ...the same...
    python recipes/bench.py tuning  ...the same...  --epochs 0.25 1 --lr 0.01 0.05 [--teacher]
    python recipes/bench.py report --out OUT

DIR holds train/CLASS/*.png and test/CLASS/*.png, all 32 x 32. "choice" cuts every layer to the same
width by different criteria, with the same recovery. "whole" runs every method as its users do, at equal
FLOPs. "ablation" removes single parts of the default. In "volume" the methods decide how much to cut;
half of the test images, drawn by the seed, are its validation data, and the others judge. "residual"
cuts only inside of residual blocks, or the streams between them as well. "tuning" tunes every cut
network for several lengths, each on a cosine of its own over the steps, from several learning rates. In
all tables but "volume" test images are never used for selection. Every run appends a row to
OUT/runs.csv; rows that exist are not run again. "report" prints means and standard deviations and draws
OUT/bench.png, and OUT/tuning.png of the rows of "tuning".

The seconds are those of the cut in this package: all methods but group norm capture the images and
record the outputs of the consumers, even those that use neither.
"""

import argparse
import copy
import importlib
import itertools
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from bench_results import LEARNING_RATE, known, report, write_row
from torch import Tensor, nn
from torch.nn import functional

from acsp_lightning import (
    Complexity,
    Distillation,
    PruningSettings,
    SelectionConfig,
    measure_complexity,
)
from acsp_lightning.functional import WidthDecision, WidthReason
from acsp_lightning.functional.distillation import distillation_loss, taught_loss
from acsp_lightning.pipeline import Recovery, capture_network, decide_cut, prune_network
from acsp_lightning.previewing import CopySite
from acsp_lightning.selection.allocation import as_decisions
from acsp_lightning.selection.cost import FlopsModel
from acsp_lightning.selection.proposal import Proposal
from acsp_lightning.structure.batchnorm import (
    match_batchnorm,
    measure_batchnorm,
    recalibrate_batchnorm,
)
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.verification import prunable_groups
from acsp_lightning.zoo import ImageClassifier, ImageFolderDataModule

WEIGHT_DECAY = 1e-4
DEFAULT = SelectionConfig()
TEACHER = Distillation()
Batches = list[tuple[Tensor, Tensor]]
Cut = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Method:
    """How channels are selected, how the consumers recover, and what sets the widths.

    ``volume`` is ``SelectionConfig.flops``, or the same share of every layer, at equal FLOPs; or the
    widths of the default at these FLOPs; or what the settings decide, or a tenth fewer FLOPs than these.
    ``residual`` lets channels go that run through residual sums. ``rescaled`` gives every refitted
    filter with a BatchNorm behind it the norm that it has without the refit; that leaves the function as
    it is. ``statistics`` of BatchNorm layers after the cut: "estimated" again from the captured images,
    as the first steps of a training would do, or those of "training" batches with the same outputs, as
    ``batchnorm_batches=16`` has them.
    """

    selection: SelectionConfig
    recovery: Literal["least_squares", "fold", "none"] = "least_squares"
    volume: Literal["flops", "uniform", "default", "decided", "deeper"] = "flops"
    residual: bool = False
    rescaled: bool = False
    statistics: Literal["kept", "estimated", "training"] = "kept"


CHOICE = {
    name: Method(selection, volume="default")
    for name, selection in {
        "default": DEFAULT,
        "largest weight per cluster": replace(DEFAULT, representative="weight"),
        "paper": replace(SelectionConfig.paper(), criterion="acsp"),
        "l1": replace(DEFAULT, criterion="l1"),
        "mean jm": replace(DEFAULT, criterion="mean_jm"),
        "random": replace(DEFAULT, criterion="random"),
    }.items()
}
WHOLE = {
    "default": Method(DEFAULT),
    "paper": Method(SelectionConfig.paper(), "none", volume="uniform"),
    "l1": Method(replace(DEFAULT, criterion="l1"), "none", volume="uniform"),
    "random": Method(replace(DEFAULT, criterion="random"), "none", volume="uniform"),
}
ABLATION = {
    "default": Method(DEFAULT),
    "level on coverage": Method(replace(DEFAULT, curve="coverage")),
    "uniform": Method(DEFAULT, volume="uniform"),
    "l1, uniform, recovered": Method(replace(DEFAULT, criterion="l1"), volume="uniform"),
    "knee of the network": Method(replace(DEFAULT, curve="damage"), volume="decided"),
    "knees of the layers": Method(replace(DEFAULT, curve="coverage"), volume="decided"),
    "folded": Method(DEFAULT, "fold"),
    "not recovered": Method(DEFAULT, "none"),
    "statistics estimated again": Method(DEFAULT, statistics="estimated"),
    "grid 2": Method(replace(DEFAULT, grid=2)),
    "grid 4": Method(replace(DEFAULT, grid=4)),
    "every pixel": Method(replace(DEFAULT, grid=None)),
}
TOLERANCES = (0.01, 0.03)
VOLUME = {
    "knee, measured": Method(DEFAULT, volume="decided"),
    "knee of the damage": Method(replace(DEFAULT, curve="damage"), volume="decided"),
    **{
        f"tolerance {tolerance}{words}": Method(replace(DEFAULT, tolerance=tolerance), volume=volume)
        for tolerance in TOLERANCES
        for volume, words in (("decided", ""), ("deeper", ", a tenth deeper"))
    },
}
TUNING = {
    "default": WHOLE["default"],
    "default, training statistics": Method(DEFAULT, statistics="training"),
    "default, rescaled": Method(DEFAULT, rescaled=True),
    "default, rescaled, training statistics": Method(DEFAULT, rescaled=True, statistics="training"),
    "default, not recovered": Method(DEFAULT, "none"),
    "l1": WHOLE["l1"],
    "paper": WHOLE["paper"],
    "random": WHOLE["random"],
}
RESIDUAL = {"inside only": Method(DEFAULT), "streams too": Method(DEFAULT, residual=True)}
TABLES: dict[str, dict[str, Method]] = {
    "choice": CHOICE,
    "whole": WHOLE,
    "ablation": ABLATION,
    "volume": VOLUME,
    "residual": RESIDUAL,
    "tuning": TUNING,
}
# Rows that are not methods of this package.
OTHERS = ["group norm", "control"]
WITH_OTHERS = ("whole", "tuning")


@dataclass(frozen=True)
class Tuning:
    """How networks are fine-tuned after a cut: not at all, after one cut, or after every few layers.

    A schedule ``by_step`` is a cosine over the steps; else it is one over the epochs.
    """

    kind: Literal["none", "oneshot", "layerwise"]
    epochs: float
    lr: float
    layers: int | None = None
    teacher: bool = False
    by_step: bool = False
    weight_decay: float = WEIGHT_DECAY

    def __str__(self) -> str:
        if self.kind == "none":
            return "none"
        words = f"{self.kind} {self.layers or f'{self.epochs:g}'}"
        words += "" if self.lr == LEARNING_RATE else f" lr {self.lr:g}"
        words += "" if self.weight_decay == WEIGHT_DECAY else f" decay {self.weight_decay:g}"
        return words + (" with teacher" if self.teacher else "")

    @property
    def spent(self) -> float:
        """Epochs of one tuning: layerwise, two of a quarter of the images."""
        return {"none": 0.0, "oneshot": self.epochs, "layerwise": 0.5}[self.kind]


class Tuned(ImageClassifier):
    """Learns from the labels, and from a teacher if there is one."""

    teacher: nn.Module | None = None
    by_step = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of the batch."""
        images, labels = batch
        logits = self(images)
        loss = functional.cross_entropy(logits, labels)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            wanted = self.teacher(images)
        return taught_loss(loss, distillation_loss(logits, wanted, TEACHER.temperature), TEACHER.weight)

    def configure_optimizers(self) -> Any:
        """The optimizer and the schedule, by step or by epoch."""
        optimizer = self.optimizer(self.network.parameters())
        assert self.lr_scheduler is not None
        scheduler = {
            "scheduler": self.lr_scheduler(optimizer),
            "interval": "step" if self.by_step else "epoch",
        }
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


@dataclass(frozen=True)
class Bench:
    """One network, its data with one seed of captured images, and how to fine-tune."""

    network: nn.Module
    data: ImageFolderDataModule
    captured: Batches
    test: Batches
    seed: int
    options: argparse.Namespace

    @property
    def example(self) -> Tensor:
        """One image."""
        return self.captured[0][0][:1]

    def groups(self, residual: bool = False) -> tuple[ChannelGroup, ...]:
        """Groups that may be cut."""
        example = (self.captured[0][0][:2],)
        return prunable_groups(self.network, example, residual=residual).groups

    def right(self, network: nn.Module) -> Tensor:
        """Which test images are classified rightly, in percent."""
        network.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            found = [network(images).argmax(1) == labels for images, labels in self.test]
        return 100 * torch.cat(found).double()

    def accuracy(self, network: nn.Module) -> float:
        """Top-1 on the test images, in percent."""
        return float(self.right(network).mean())

    def tune(self, network: nn.Module, tuning: Tuning) -> None:
        """Fine-tune with SGD."""
        share = min(tuning.epochs, 1.0) if tuning.kind == "oneshot" else 0.25
        epochs = max(1, round(tuning.epochs)) if tuning.kind == "oneshot" else 2
        steps = epochs * int(share * len(self.data.train_dataloader())) if tuning.by_step else epochs
        schedule: Callable[[Any], Any] = (
            partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps)
            if tuning.kind == "oneshot"
            else partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
        )
        module = Tuned(
            network.train(),
            num_classes=self.options.classes,
            optimizer=partial(
                torch.optim.SGD, lr=tuning.lr, momentum=0.9, weight_decay=tuning.weight_decay
            ),
            lr_scheduler=schedule,
        )
        module.by_step = tuning.by_step
        if tuning.teacher:
            teacher = copy.deepcopy(self.network).eval().requires_grad_(False)
            object.__setattr__(module, "teacher", teacher)  # no submodule: neither trained nor saved
        trainer = pl.Trainer(
            max_epochs=epochs,
            limit_train_batches=share,
            limit_val_batches=0,
            accelerator="auto",
            precision="bf16-mixed" if self.options.bf16 else "32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, self.data)


def keep_for(groups: Sequence[ChannelGroup], whole: Complexity, target: float) -> float:
    """The share of every layer's channels that keeps a given share of the FLOPs, by bisection."""
    costs = FlopsModel(groups, whole.by_layer)
    budget = target * whole.flops - (whole.flops - sum(whole.by_layer.values()))
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        widths = {group.name: max(2, round(middle * group.width)) for group in groups}
        low, high = (middle, high) if costs.total(widths) <= budget else (low, middle)
    return low


def our_steps(bench: Bench, method: Method, target: float, layers: int | None) -> Iterator[Cut]:
    """A method of this package: cuts of ``layers`` groups, first to last."""
    initial = measure_complexity(bench.network, (bench.example,))
    groups, decisions = bench.groups(method.residual), None
    selection = replace(method.selection, seed=bench.seed)
    if method.volume in ("flops", "default"):
        selection = replace(selection, flops=target)
    if method.volume == "deeper":
        proposal, _ = decide(bench, bench.network, PruningSettings(selection=selection))
        widths = {name: found.k for name, found in proposal.selections.items()}
        saved = FlopsModel(groups, initial.by_layer)
        share = 1 - (saved.total({}) - saved.total(widths)) / initial.flops
        selection = replace(DEFAULT, seed=bench.seed, flops=0.9 * share)
    if method.volume == "uniform":
        selection = replace(selection, keep=keep_for(groups, initial, target))
    if method.volume == "default":
        default = PruningSettings(selection=replace(DEFAULT, flops=target))
        proposal, _ = decide(bench, bench.network, default)
        widths = {name: found.k for name, found in proposal.selections.items()}
        decisions = as_decisions(widths, WidthReason.GIVEN)
    settings = PruningSettings(
        selection=selection,
        recovery=method.recovery,
        residual=method.residual,
        recovery_samples=bench.options.recovery_samples,
        layers_per_epoch=layers,
    )
    names = [group.name for group in groups]
    for start in range(0, len(names), layers or len(names)):

        def cut(network: nn.Module, start: int = start) -> None:
            made = decide(bench, network, settings, names[:start], initial, decisions)
            plain = copy.deepcopy(network) if method.rescaled else None
            prune_network(network, *made)
            if plain is not None:
                prune_network(plain, made[0], replace(made[1], refit=None))
                rescale(network, plain)
            if method.statistics == "estimated":
                images = (images for images, _ in bench.captured)
                recalibrate_batchnorm(network.train(), images, len(bench.captured))
            if method.statistics == "training":
                batches = itertools.islice(bench.data.train_dataloader(), 16)
                found = measure_batchnorm(network, ((images,) for images, _ in batches))
                match_batchnorm(network, found)

        yield cut


@torch.no_grad()
def rescale(network: nn.Module, plain: nn.Module) -> None:
    """Give filters with a BatchNorm behind them the norm that they have in ``plain``.

    Layers are taken to run in the order in which they are registered.
    """
    layers = [
        pair
        for pair in zip(network.modules(), plain.modules(), strict=True)
        if not list(pair[0].children())
    ]
    for (layer, wanted), (norm, _) in itertools.pairwise(layers):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            assert isinstance(wanted, nn.Conv2d)
            factors = wanted.weight.flatten(1).norm(dim=1) / layer.weight.flatten(1).norm(dim=1)
            layer.weight.mul_(factors[:, None, None, None])
            if layer.bias is not None:
                layer.bias.mul_(factors)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.mul_(factors)
            norm.running_var.mul_(factors**2)


def decide(
    bench: Bench,
    network: nn.Module,
    settings: PruningSettings,
    visited: Sequence[str] = (),
    initial: Complexity | None = None,
    decisions: Mapping[str, WidthDecision] | None = None,
) -> tuple[Proposal, Recovery]:
    """Decide on a cut of ``network``, with the widths of ``decisions`` if they are given."""
    example, captured = capture_network(
        network, bench.captured, settings, visited=visited, initial=initial
    )
    captured = replace(captured, decisions=decisions)
    return decide_cut(CopySite(network, bench.captured), captured, settings, example, initial)


def group_norm_steps(bench: Bench, target: float, steps: int) -> Iterator[Cut]:
    """Torch-Pruning's group-norm pruner as its own CIFAR script runs it, in ``steps`` equal parts.

    Global ranking, tiny steps until the FLOPs are reached, the last layer not pruned.
    """
    import torch_pruning as tp

    whole = measure_complexity(bench.network, (bench.example,)).flops
    made: list[Any] = []
    for place in range(steps):

        def cut(network: nn.Module, place: int = place) -> None:
            if not made:
                pruner = tp.pruner.GroupNormPruner(
                    network,
                    bench.example,
                    importance=tp.importance.GroupMagnitudeImportance(p=2),
                    global_pruning=True,
                    pruning_ratio=1.0,
                    iterative_steps=400,
                    ignored_layers=[[m for m in network.modules() if isinstance(m, nn.Linear)][-1]],
                )
                made.append(pruner)
            allowed = whole * (1 - (1 - target) * (place + 1) / steps)
            while measure_complexity(network, (bench.example,)).flops > allowed:
                made[0].step()

        yield cut


def cuts_of(bench: Bench, name: str, target: float, layers: int | None) -> Iterator[Cut]:
    """The cuts of one row, in order; a single one without ``layers``."""
    steps = 1 if layers is None else -(-len(bench.groups()) // layers)
    if name == "control":
        return iter([lambda network: None] * steps)
    if name == "group norm":
        return group_norm_steps(bench, target, steps)
    return our_steps(bench, TABLES[bench.options.table][name], target, layers)


def run_method(
    bench: Bench, name: str, target: float, tunings: Sequence[Tuning]
) -> Iterator[tuple[Tuning, dict[str, Any]]]:
    """Results of rows that differ in the tuning alone, so that they share their cut if there is one."""
    network = copy.deepcopy(bench.network)
    if tunings[0].kind == "layerwise":
        (tuning,) = tunings
        yield tuning, layerwise(bench, network, cuts_of(bench, name, target, tuning.layers), tuning)
        return
    (cut,) = cuts_of(bench, name, target, None)
    start = time.perf_counter()
    cut(network.eval())
    found = {"seconds": time.perf_counter() - start, "cut": bench.accuracy(network)}
    for tuning in tunings:
        tuned, results = copy.deepcopy(network), {**found, "epochs": tuning.spent}
        if tuning.kind != "none":
            pl.seed_everything(bench.seed, verbose=False)
            bench.tune(tuned, tuning)
            results["tuned"] = bench.accuracy(tuned)
        yield tuning, results | measured(bench, tuned)


def layerwise(bench: Bench, network: nn.Module, cuts: Iterator[Cut], tuning: Tuning) -> dict[str, Any]:
    """Results of cuts with a tuning after each."""
    found: dict[str, Any] = {"seconds": 0.0, "epochs": 0.0}
    for cut in cuts:
        start = time.perf_counter()
        cut(network.eval())
        found["seconds"] += time.perf_counter() - start
        found["cut"] = bench.accuracy(network)
        bench.tune(network, tuning)
        found["epochs"] += tuning.spent
    return found | {"tuned": bench.accuracy(network)} | measured(bench, network)


def measured(bench: Bench, network: nn.Module) -> dict[str, Any]:
    """Reduction of FLOPs and parameters, and the accuracy of the uncut network."""
    before, after = (measure_complexity(n.eval(), (bench.example,)) for n in (bench.network, network))
    lost = bench.right(bench.network) - bench.right(network)
    return {
        "flops": before.flops / after.flops,
        "parameters": before.parameters / after.parameters,
        "base": bench.accuracy(bench.network),
        "error": float(lost.std()) / len(lost) ** 0.5,
    }


def benches(options: argparse.Namespace) -> Iterator[Bench]:
    """Yield one bench for every seed."""
    module, _, attribute = options.network.rpartition(".")
    for seed in options.seeds:
        pl.seed_everything(seed, verbose=False)
        network = getattr(importlib.import_module(module), attribute)(num_classes=options.classes)
        ImageClassifier(network, num_classes=options.classes, weights=options.weights)
        data = ImageFolderDataModule(
            options.data,
            val=None,
            test="test",
            size=32,
            augmentation="padded_crop",
            batch_size=options.batch_size,
            val_share=options.captured_share,
            seed=seed,
        )
        data.setup("fit")
        data.setup("test")
        captured, test = list(data.val_dataloader()), list(data.test_dataloader())
        if options.table == "volume":
            captured, test = halves_of(test, seed, options.batch_size)
        network = network.eval().to(memory_format=torch.channels_last)
        yield Bench(network, data, captured, test, seed, options)


def halves_of(batches: Batches, seed: int, batch_size: int) -> tuple[Batches, Batches]:
    """Two random halves of some images: accuracy lost on images trained on says nothing of others."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return tuple(  # type: ignore[return-value]
        [(images[rows], labels[rows]) for rows in half.split(batch_size)] for half in order.chunk(2)
    )


def methods_of(options: argparse.Namespace) -> list[str]:
    """The requested rows: by default all of the table, the control only with fine-tuning."""
    rows = list(TABLES[options.table])
    if options.table in WITH_OTHERS:
        rows += OTHERS if options.table == "whole" and options.tuning != "none" else OTHERS[:1]
    return options.methods or rows


def tunings_of(options: argparse.Namespace) -> list[Tuning]:
    """The requested ways to fine-tune."""
    if options.tuning == "none":
        return [Tuning("none", 0, 0)]
    if options.tuning == "layerwise":
        return [
            Tuning("layerwise", 2, rate, options.layers, options.teacher, False, options.weight_decay)
            for rate in options.lr
        ]
    by_step = options.table == "tuning"
    return [
        Tuning("oneshot", epochs, rate, None, options.teacher, by_step, options.weight_decay)
        for epochs in options.epochs
        for rate in options.lr
    ]


def captured_by(bench: Bench, recovery_samples: int | None) -> str:
    """How many images were captured, and to how many layers were refitted if that was said."""
    captured = sum(len(labels) for _, labels in bench.captured)
    return f"{captured}" if recovery_samples is None else f"{captured}, refit to {recovery_samples}"


def run(options: argparse.Namespace) -> None:
    """Run what is missing and append a row for each run."""
    path = options.out / "runs.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    for bench in benches(options):
        setting = {
            "table": options.table,
            "network": options.network.rpartition(".")[2],
            "precision": "bf16" if options.bf16 else "float32",
            "captured": captured_by(bench, options.recovery_samples),
            "seed": str(bench.seed),
        }
        for target, name in itertools.product(options.flops, methods_of(options)):
            key = setting | {"target": f"{target:.3f}", "method": name}
            missing = [
                tuning
                for tuning in tunings_of(options)
                if not any((key | {"tuning": str(tuning)}).items() <= row.items() for row in known(path))
            ]
            if not missing:
                continue
            pl.seed_everything(bench.seed, verbose=False)
            for tuning, found in run_method(bench, name, target, missing):
                numbers = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in found.items()}
                machine = f"{platform.machine()} x{torch.get_num_threads()} torch {torch.__version__}"
                row = key | {"tuning": str(tuning), "machine": machine} | numbers
                write_row(path, row)
                print(row, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=[*TABLES, "report"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--network", default="acsp_lightning.zoo.resnet56", help="import path")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--weights", type=Path, help="state dict of the trained network")
    parser.add_argument("--data", type=Path, help="folder of train/ and test/")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--captured-share", type=float, default=0.08, help="of the training images")
    parser.add_argument("--recovery-samples", type=int, help="of the refit; else the default")
    parser.add_argument("--flops", type=float, nargs="+", help="share that stays")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="rows; all by default")
    parser.add_argument("--tuning", choices=["none", "oneshot", "layerwise"], default="none")
    parser.add_argument("--epochs", type=float, nargs="+", help="of one-shot tuning, below 1 or whole")
    parser.add_argument("--layers", type=int, default=1, help="groups in a step of layerwise tuning")
    parser.add_argument("--lr", type=float, nargs="+", help="of tuning, at its start")
    parser.add_argument("--weight-decay", type=float, default=WEIGHT_DECAY, help="of tuning")
    parser.add_argument("--teacher", action="store_true", help="tune with the uncut network as teacher")
    parser.add_argument("--bf16", action="store_true", help="train and test in bfloat16")
    options = parser.parse_args(arguments)
    if options.table == "report":
        report(options.out)
        return
    for needed in ("weights", "data"):
        if getattr(options, needed) is None:
            parser.error(f"--{needed} is needed for {options.table}")
    if options.table == "volume":
        options.flops = [1.0]  # the methods decide
    if options.table == "tuning":
        options.tuning = "oneshot"
        options.flops = options.flops or [1 / 2.1, 1 / 3, 1 / 4]
        options.epochs = options.epochs or [0.25, 1, 2, 4, 8]
        options.lr = options.lr or [LEARNING_RATE, 0.05]
    options.flops = options.flops or [1 / 1.4, 1 / 2.1, 1 / 3]
    options.epochs = options.epochs or [8]
    options.lr = options.lr or [LEARNING_RATE]
    if any(epochs != round(epochs) and not 0 < epochs < 1 for epochs in options.epochs):
        parser.error(f"--epochs is {options.epochs}; each must be between 0 and 1, or whole.")
    allowed = [*TABLES[options.table], *(OTHERS if options.table in WITH_OTHERS else [])]
    for name in options.methods or []:
        if name not in allowed:
            parser.error(f"{options.table} has no row {name!r}, but: {', '.join(allowed)}")
    run(options)


if __name__ == "__main__":
    main()
