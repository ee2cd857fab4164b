"""What is cut on networks that people use, beside Torch-Pruning: the table of coverage.

    python tests/benchmarks/coverage.py --out OUT
    python tests/benchmarks/coverage.py --out OUT torchvision/resnet18 timm/ghostnet_050

Without names the whole list, which takes an hour or more on one core. Every network and tool runs in a
process of its own, under the same limits of processor time and memory, so that a crash and a search
without end are rows. Each row is written to OUT/coverage.json at once; a second call goes on with those
that are missing. Then the table is printed.

Half of the channels of every group go, the classifier stays. Constant parameters (scales of one, layer
scales of a millionth, gains of zero) are randomised and BatchNorm has seen real activations, else errors
hide. The cut network is compared, in float64, with the whole one whose layers are handed zeros in place
of the channels they lost; then it takes a step of SGD. Under "refit", norms that take all channels
together may lose some: there they run over the channels that stay, in the whole network too.
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 4
SIZES = {"inception": 96, "xception": 96}  # smaller images leave nothing of their maps
SECONDS = 180  # of processor time, for one network and tool
BYTES = 8 << 30
# Of the largest output. Reordered sums in float64 stay far below.
TOLERANCE = 1e-6

TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 mnasnet0_5 mobilenet_v2
mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50
resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 vgg11_bn vgg16
"""
TIMM = """
convnext_atto cs3darknet_s cspdarknet53 cspresnet50 darknet53 densenetblur121d dla34 dm_nfnet_f0
dpn68 ecaresnet26t edgenext_xx_small efficientnet_b0 efficientnet_lite0 ese_vovnet19b_dw
fasternet_t0 fastvit_t8 fbnetv3_b gernet_s ghostnet_050 hardcorenas_a hgnet_tiny hgnetv2_b0
hrnet_w18_small inception_v4 lcnet_050 legacy_seresnet18 mixnet_s mnasnet_100 mobilenetv1_100
mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 nf_regnet_b0 regnetx_002 repghostnet_050
repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d resnet26d resnet50_gn resnetv2_50
resnetv2_50x1_bit rexnet_100 selecsls42b seresnext26t_32x4d skresnet18 spnasnet_100 starnet_s1
tinynet_e xception41
"""
NETWORKS = [
    f"{source}/{name}"
    for source, names in (("torchvision", TORCHVISION), ("timm", TIMM))
    for name in names.split()
]


# -- networks ------------------------------------------------------------------------------------------


def image_size(name: str) -> int:
    """Pixels along a side."""
    return next((size for part, size in SIZES.items() if part in name), 64)


def build(name: str) -> nn.Module:
    """A classifier in which errors show, in eval mode; the same every time."""
    torch.manual_seed(0)
    source, _, kind = name.partition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if source == "torchvision":
            import torchvision

            # Auxiliary classifiers need larger images, and run in training alone.
            aux = {"aux_logits": False, "init_weights": False}
            options = aux if kind in ("googlenet", "inception_v3") else {}
            network = torchvision.models.get_model(kind, num_classes=CLASSES, **options)
        else:
            import timm

            network = timm.create_model(kind, num_classes=CLASSES)
    vary_constants(network)
    calibrate(network, images(name, 16))
    return network.eval()


def images(name: str, samples: int, seed: int = 0) -> Tensor:
    """Blurred noise, so that neighbouring pixels are alike."""
    generator = torch.Generator().manual_seed(seed)
    size = image_size(name)
    coarse = torch.randn(samples, 3, size // 4, size // 4, generator=generator)
    fine = torch.randn(samples, 3, size, size, generator=generator)
    return nn.functional.interpolate(coarse, size, mode="bilinear") + 0.3 * fine


def vary_constants(network: nn.Module) -> None:
    """Give different values to what is initialised with a single one, and break zero scalars."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            flat = parameter.flatten()
            if len(flat) == 0 or bool((flat != flat[0]).any()) or (len(flat) == 1 and flat[0] != 0):
                continue
            drawn = torch.rand(parameter.shape, generator=generator)
            is_shift = name.endswith("bias")
            parameter.copy_(0.4 * drawn - 0.2 if is_shift else 0.5 + drawn)


def calibrate(network: nn.Module, inputs: Tensor) -> None:
    """Let BatchNorm average over real activations, one layer after the other: all see the same."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = 1.0
    with torch.no_grad():
        network(inputs)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


# -- tools ---------------------------------------------------------------------------------------------

Dropped = Mapping[str, set[int]]  # positions by the layer that reads them


class RefusedError(Exception):
    """The tool says that it cuts nothing."""


def cut_by_ours(
    network: nn.Module, inputs: Tensor, *, residual: bool | None, norms: str = "exact"
) -> tuple[Dropped, dict[str, Any]]:
    """Cut in place; what was dropped, how many groups were cut and left, and norms over fewer."""
    from acsp_lightning import UnsupportedStructureError, apply_plan
    from acsp_lightning.structure.plan import build_plan
    from acsp_lightning.structure.verification import prunable_groups

    try:
        tracing = prunable_groups(network, (inputs,), residual=residual, norms=norms)
    except UnsupportedStructureError as error:
        raise RefusedError(str(error)) from error
    generator = torch.Generator().manual_seed(2)
    kept = {
        group.name: torch.randperm(group.width, generator=generator)[: -(-group.width // 2)].tolist()
        for group in tracing.groups
    }
    plan = build_plan(tracing.groups, kept)
    over_fewer = kept_by_norms(network, plan.norms(tracing.groups), plan)
    apply_plan(network, plan)
    dropped = {cut.layer: set(range(cut.width)) - set(cut.kept) for cut in plan if cut.side == "in"}
    return dropped, {
        "cut": len(tracing.groups),
        "left": len(tracing.left_whole),
        "reasons": dict(tracing.left_whole),
        "norms": over_fewer,
    }


def kept_by_norms(network: nn.Module, names: Iterable[str], plan: Any) -> dict[str, list[int]]:
    """The channels over which norms and standardised filters run after a cut."""
    kept = {}
    for name in names:
        cuts = {cut.side: cut.kept for cut in plan if cut.layer == name}
        kept[name] = list(
            cuts["in"] if is_reader(network.get_submodule(name)) else next(iter(cuts.values()))
        )
    return kept


def cut_by_torch_pruning(network: nn.Module, inputs: Tensor) -> tuple[Dropped, dict[str, Any]]:
    """Cut in place, as the README of Torch-Pruning does."""
    import torch_pruning as tp

    heads = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == CLASSES]
    if not heads:  # a convolution classifies
        heads = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.out_channels == CLASSES]
    pruner = tp.pruner.BasePruner(
        network,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=heads,
    )
    names = {module: name for name, module in network.named_modules()}
    # Indices are those of the moment; the network that is compared with is as wide as in the beginning.
    remaining: dict[str, list[int]] = {}
    dropped: dict[str, set[int]] = {}
    groups = 0
    for group in pruner.step(interactive=True):
        groups += 1
        for dependency, indices in group:
            layer = dependency.target.module
            name = names.get(layer)
            if name is None or not is_reader(layer):
                continue
            if pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                continue
            places = remaining.setdefault(name, list(range(in_width(layer))))
            gone = {places[index] for index in indices}
            dropped[name] = dropped.get(name, set()) | gone
            remaining[name] = [place for place in places if place not in gone]
        group.prune()
    return dropped, {"cut": groups, "left": None, "reasons": {}}


def is_reader(layer: nn.Module) -> bool:
    """Whether a layer mixes its channels."""
    if isinstance(layer, nn.Conv2d):
        return not layer.groups == layer.in_channels == layer.out_channels > 1
    return isinstance(layer, nn.Linear)


def in_width(layer: nn.Module) -> int:
    """Positions in the input of a layer, as it is now."""
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features


TOOLS: dict[str, Callable[[nn.Module, Tensor], tuple[Dropped, dict[str, Any]]]] = {
    "default": lambda network, inputs: cut_by_ours(network, inputs, residual=None),
    "residual": lambda network, inputs: cut_by_ours(network, inputs, residual=True),
    "refit": lambda network, inputs: cut_by_ours(network, inputs, residual=True, norms="refit"),
    "torch-pruning": cut_by_torch_pruning,
}


# -- one row -------------------------------------------------------------------------------------------


def row_of(name: str, tool: str) -> dict[str, Any]:
    """What became of a network under a tool; status is right, refused, wrong or broken."""
    row: dict[str, Any] = {"network": name, "tool": tool, "status": "broken"}
    whole, inputs = build(name), images(name, 2, seed=3)
    cut = copy.deepcopy(whole)
    row["before"] = flops(whole, inputs)
    start = time.process_time()
    try:
        dropped, found = TOOLS[tool](cut, inputs)
    except RefusedError as error:
        return row | {"status": "refused", "why": str(error), "after": row["before"]}
    except Exception as error:
        return row | {"why": f"cut: {type(error).__name__}: {error}"[:300]}
    row |= found | {"seconds": time.process_time() - start}
    try:
        over_fewer = row.pop("norms", {})
        row["norms"] = len(over_fewer)
        with norms_over(whole, over_fewer):
            row["deviation"] = deviation(whole.double(), cut.double(), dropped, inputs.double())
        row["after"] = flops(cut, inputs.double())
        step(cut, images(name, 4, seed=4).double())
    except Exception as error:
        return row | {"why": f"forward or training: {type(error).__name__}: {error}"[:300]}
    return row | {"status": "right" if row["deviation"] <= TOLERANCE else "wrong"}


def flops(network: nn.Module, inputs: Tensor) -> int:
    """Multiply-adds of a sample, as fvcore counts them."""
    from acsp_lightning import measure_complexity

    return measure_complexity(network.eval(), inputs[:1]).flops


def deviation(whole: nn.Module, cut: nn.Module, dropped: Dropped, inputs: Tensor) -> float:
    """Largest difference of the outputs, as a share of the largest output."""
    with torch.no_grad(), zeros_read(whole, dropped):
        expected = whole.eval()(inputs)
    with torch.no_grad():
        found = cut.eval()(inputs)
    if expected.shape != found.shape or not found.isfinite().all():
        return float("inf")
    return float((expected - found).abs().max() / expected.abs().max())


@contextmanager
def zeros_read(network: nn.Module, dropped: Dropped) -> Iterator[None]:
    """Hand layers zeros in place of the positions that they are to lose."""

    def zeros(positions: Iterable[int]) -> Callable[..., Tensor]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> Tensor:
            values = arguments[0].clone()
            view = values.movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
            view[sorted(positions)] = 0
            return values

        return hook

    with ExitStack() as stack:
        for name, positions in dropped.items():
            layer = network.get_submodule(name)
            stack.callback(layer.register_forward_pre_hook(zeros(positions)).remove)
        yield


@contextmanager
def norms_over(network: nn.Module, kept: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Let norms use the statistics of some of their channels, by formulas of our own."""

    def hook(positions: Sequence[int]) -> Callable[..., Tensor]:
        def over(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            (values,) = arguments
            places = torch.tensor(positions)
            if isinstance(module, nn.Conv2d):
                return standardised(module, values, places)
            dim = channels_of(module, values)
            return output.index_copy(dim, places, normalised(module, values, dim, places))

        return over

    with ExitStack() as stack:
        for name, positions in kept.items():
            layer = network.get_submodule(name)
            stack.callback(layer.register_forward_hook(hook(positions)).remove)
        yield


def channels_of(norm: nn.Module, values: Tensor) -> int:
    """The dimension of the channels; the last one where both would do."""
    width = norm.weight.numel()
    return next(dim for dim in (values.ndim - 1, 1) if values.shape[dim] == width)


def normalised(norm: nn.Module, values: Tensor, dim: int, places: Tensor) -> Tensor:
    """LayerNorm, GroupNorm of one group, or the global response normalisation of ConvNeXt V2."""
    values = values.index_select(dim, places)
    shape = [-1 if d == dim else 1 for d in range(values.ndim)]
    weight, bias = (p[places].view(shape) for p in (norm.weight, norm.bias))
    if not isinstance(norm, nn.LayerNorm | nn.GroupNorm):
        others = [d for d in range(1, values.ndim) if d != dim]
        sizes = values.square().sum(others, keepdim=True).sqrt()
        return values + weight * values * sizes / (sizes.mean(dim, keepdim=True) + norm.eps) + bias
    dims = list(range(1, values.ndim)) if isinstance(norm, nn.GroupNorm) else [dim]
    spread = (values.var(dims, correction=0, keepdim=True) + norm.eps).sqrt()
    return (values - values.mean(dims, keepdim=True)) / spread * weight + bias


def standardised(layer: nn.Conv2d, values: Tensor, places: Tensor) -> Tensor:
    """What a convolution of timm gives whose filters are standardised over some inputs."""
    from timm.layers import pad_same

    weight = layer.weight[:, places]
    deviation, mean = torch.var_mean(weight, (1, 2, 3), keepdim=True, correction=0)
    weight = (weight - mean) / (deviation + layer.eps).sqrt()
    weight = weight * getattr(layer, "gain", 1.0) * getattr(layer, "scale", 1.0)
    geometry = (layer.stride, layer.padding, layer.dilation)
    if getattr(layer, "same_pad", False):
        values = pad_same(values, layer.kernel_size, layer.stride, layer.dilation)
    return nn.functional.conv2d(values[:, places], weight, layer.bias, *geometry)


def step(network: nn.Module, inputs: Tensor) -> None:
    """One step of SGD in train mode; raises if it cannot be made."""
    network.train().requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    nn.functional.cross_entropy(network(inputs), torch.arange(len(inputs)) % CLASSES).backward()
    if not any(parameter.grad is not None for parameter in network.parameters()):
        raise RuntimeError("no parameter has a gradient")
    optimizer.step()
    with torch.no_grad():
        network.eval()(inputs)


# -- processes -----------------------------------------------------------------------------------------


def row_of_process(name: str, tool: str) -> dict[str, Any]:
    """:func:`row_of` in a process with limits; what kills it becomes the row."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))

    # One thread, so that processor time is what one core needs.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--row", tool, name]
    row = {"network": name, "tool": tool, "status": "broken"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            preexec_fn=limit,
            capture_output=True,
            text=True,
            timeout=10 * SECONDS,  # of a busy machine
        )
    except subprocess.TimeoutExpired:
        return row | {"why": f"no answer in {10 * SECONDS} s by the clock"}
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    if done.returncode < 0:
        return row | {"why": f"no answer in {SECONDS} s (ended by signal {-done.returncode})"}
    return row | {"why": (done.stderr.splitlines() or ["it ended without a word"])[-1][:300]}


def gather(names: Sequence[str], tools: Sequence[str], file: Path) -> list[dict[str, Any]]:
    """The rows of all networks, those of the file first; the file has every row as soon as it is."""
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    known = {(row["network"], row["tool"]) for row in rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        for tool in tools:
            if (name, tool) in known:
                continue
            rows.append(row_of_process(name, tool))
            print(f"{name} {tool}: {_cell(rows[-1])}", file=sys.stderr, flush=True)
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(rows, indent=1) + "\n")
            partial.replace(file)
    return [row for row in rows if row["network"] in names and row["tool"] in tools]


# -- the table -----------------------------------------------------------------------------------------


def saved(row: Mapping[str, Any]) -> float:
    """Share of FLOPs saved; nothing where the network cannot be used."""
    if row["status"] not in ("right", "wrong"):
        return 0.0
    return 1 - row["after"] / row["before"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each network, a column for each tool."""
    tools = list(dict.fromkeys(row["tool"] for row in rows))
    cells = {(row["network"], row["tool"]): _cell(row) for row in rows}
    lines = [f"| network | {' | '.join(tools)} |", f"|---|{'---|' * len(tools)}"]
    for name in dict.fromkeys(row["network"] for row in rows):
        lines.append(f"| {name} | {' | '.join(cells.get((name, tool), '-') for tool in tools)} |")
    return "\n".join(lines)


def totals(rows: Sequence[Mapping[str, Any]]) -> str:
    """How often each tool is right, and what it saves where Torch-Pruning is right."""
    judged = {r["network"] for r in rows if r["tool"] == "torch-pruning" and r["status"] == "right"}
    lines = []
    for tool in dict.fromkeys(row["tool"] for row in rows):
        own = [row for row in rows if row["tool"] == tool]
        counts = {s: sum(r["status"] == s for r in own) for s in ("right", "refused", "wrong", "broken")}
        shares = {
            "all": [saved(row) for row in own],
            "where Torch-Pruning is right": [saved(row) for row in own if row["network"] in judged],
        }
        said = [f"{sum(s) / len(s):.3f} on {label} ({len(s)})" for label, s in shares.items() if s]
        lines.append(
            f"{tool}: {', '.join(f'{n} {s}' for s, n in counts.items())}; saves {', '.join(said)}"
        )
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    if row["status"] == "refused":
        return "refused"
    if row["status"] == "broken":
        return row["why"].replace("|", "/")[:60]
    groups = f"{row['cut']}/{row['left']}, " if row["left"] is not None else ""
    wrong = "" if row["status"] == "right" else f", off by {row['deviation']:.1%}"
    return f"{groups}{row['before'] / row['after']:.2f}x{wrong}"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="torchvision/NAME or timm/NAME; the list by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--row", choices=TOOLS, help="one network and tool, here, as JSON")
    options = parser.parse_args(arguments)
    if options.row:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            print(json.dumps(row_of(options.names[0], options.row)))
        return
    rows = gather(options.names or NETWORKS, options.tools, options.out / "coverage.json")
    print(table(rows))
    print(f"\n{totals(rows)}")


if __name__ == "__main__":
    main()
