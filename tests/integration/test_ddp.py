"""Two real processes with gloo on the CPU; what they do is in helpers/ddp_job.py.

SyncBatchNorm trains on GPUs only, so here it is only cut, in eval mode.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ddp_job
from helpers.fits import ALL_HALVED, Classifier, Fit, callback, conv_net, noisy_images, widths
from helpers.processes import LIMIT, exit_codes, free_port
from torch import nn
from torch.utils.data import DataLoader, Subset

from acsp_lightning.structure.plan import build_plan
from acsp_lightning.structure.pruning import prune
from acsp_lightning.structure.tracing import trace_groups

pytestmark = pytest.mark.processes

# Where processes of their own find the helpers, and the package.
TESTS = os.pathsep.join([str(Path(ddp_job.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])


def launch(job: str, folder: Path, *arguments: str) -> tuple[list[int | None], list[str]]:
    """Exit codes and outputs of both ranks, none of which may outlive the limit."""
    return exit_codes(2, ddp_job.join, folder, job, folder, *arguments)


def succeed(job: str, folder: Path, *arguments: str) -> tuple[list[dict[str, Any]], list[str]]:
    """What both ranks found and printed."""
    codes, outputs = launch(job, folder, *arguments)
    assert codes == [0, 0], "\n".join(outputs)
    return found_in(folder), outputs


def found_in(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"found{rank}.pt") for rank in range(2)]


def assert_same(first: Any, second: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def widths_of(found: dict[str, Any]) -> dict[str, int]:
    return {n.removesuffix(".weight"): len(t) for n, t in found["state"].items() if n[-6:] == "weight"}


def check_several(found: Sequence[dict[str, Any]], folder: Path) -> None:
    first, second = found
    assert_same(first, second)
    assert first["optimizers"][0]["state"]
    assert widths_of(first).items() >= ALL_HALVED.items()
    assert [list(step) for step in first["kept"]] == [["net.conv1"], ["net.conv2"], ["net.fc1"]]
    records = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))
    assert records == [f"records0/cut_after_epoch_{epoch}/report.json" for epoch in range(3)]
    assert len(list(folder.rglob("report.html"))) == 3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_rank_0_decides_and_all_ranks_go_on_alike(tmp_path: Path, optimizer: str) -> None:
    found, (first, second) = succeed("several", tmp_path, optimizer)
    check_several(found, tmp_path)
    assert first.count("Cut after epoch") == 3
    assert first.count("Pruned in 3 cuts") == 1
    assert "Cut after" not in second
    assert "Pruned in" not in second


def test_lightning_launches_the_processes(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": TESTS}
    command = [sys.executable, "-m", "helpers.ddp_job", "several", str(tmp_path)]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    check_several(found_in(tmp_path), tmp_path)
    assert output.count("Cut after epoch") == 3


def torchrun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    """A command and an environment, as docs/many_gpus.md has them."""
    options = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={node}"]
    options += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    return [sys.executable, "-m", "torch.distributed.run", *options], {}


def srun(node: int, port: int) -> tuple[list[str], dict[str, str]]:
    """What srun sets for the first process of a node, of one each."""
    variables = {"JOB_ID": "7", "JOB_NAME": "prune", "NTASKS": "2", "NTASKS_PER_NODE": "1"}
    variables |= {"PROCID": str(node), "LOCALID": "0", "NODEID": str(node), "NODELIST": "127.0.0.1"}
    environment = {f"SLURM_{name}": value for name, value in variables.items()}
    return [sys.executable], {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.mark.parametrize("launcher", [torchrun, srun])
def test_processes_on_two_nodes(tmp_path: Path, launcher: Any) -> None:
    """Both nodes are this machine."""
    port, running = free_port(), []
    for node in range(2):
        command, variables = launcher(node, port)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": TESTS, **variables}
        work = ["-m", "helpers.ddp_job", "several", str(tmp_path)]
        with (tmp_path / f"output{node}.txt").open("w") as output:
            running.append(
                subprocess.Popen(
                    [*command, *work],
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    try:
        codes = [process.wait(LIMIT) for process in running]
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    outputs = [(tmp_path / f"output{node}.txt").read_text() for node in range(2)]
    assert codes == [0, 0], "\n".join(outputs)
    check_several(found_in(tmp_path), tmp_path)
    assert [output.count("Cut after epoch") for output in outputs] == [3, 0]


@pytest.mark.usefixtures("every_position")  # which ones are looked at depends on the batches
@pytest.mark.parametrize(
    ("kind", "rule"), [("sampler", "keep"), ("uneven", "keep"), ("none", "keep"), ("uneven", "damage")]
)
def test_ranks_decide_as_one_process_over_all_samples(
    tmp_path: Path, fit: Fit, kind: str, rule: str
) -> None:
    (first, second), _ = succeed("shares", tmp_path, kind, rule)
    own = {"collectives": None, "weighed": None}
    assert_same({**first, **own}, {**second, **own})
    # Each group was compared and clustered by one of them.
    assert sorted(first["weighed"] + second["weighed"]) == ["net.conv1", "net.conv2", "net.fc1"]
    assert first["weighed"]
    assert second["weighed"]

    indices = [*ddp_job.SHARES[kind][0], *ddp_job.SHARES[kind][1]]
    alone = callback(selection=ddp_job.RULES[rule], recovery="least_squares")
    samples = Subset(noisy_images(ddp_job.SAMPLES, seed=2), indices)
    module = Classifier(ddp_job.bare_net(), ddp_job.still)
    fit(module, [alone], val=DataLoader(samples, batch_size=6))
    expected = ddp_job.evidence(alone)

    for name in ("kept", "samples", "accuracies"):
        assert first[name] == expected[name]
    torch.testing.assert_close(first["curves"], expected["curves"])
    # Refitted on samples of both ranks.
    torch.testing.assert_close(first["state"], dict(module.state_dict()), rtol=1e-4, atol=1e-5)


def test_a_decision_may_take_longer_than_a_collective(tmp_path: Path) -> None:
    (first, second), _ = succeed("patient", tmp_path, "4")
    assert_same(first["state"], second["state"])
    assert widths_of(first).items() >= ALL_HALVED.items()
    assert len(list((tmp_path / "records").iterdir())) == 1


def test_a_capture_takes_one_collective(tmp_path: Path) -> None:
    found, _ = succeed("shares", tmp_path, "uneven")
    for rank in range(2):
        taken = [calls for hook, calls in found[rank]["collectives"] if hook == "end"]
        # The sanity check before training, the epoch that is captured, and two more.
        assert taken == [0, 1, 0, 0]
        assert all(calls == 0 for hook, calls in found[rank]["collectives"] if hook == "batch")


@pytest.mark.parametrize("name", ["find_unused", "static", "view", "accumulate", "bf16"])
def test_options_of_ddp(tmp_path: Path, name: str) -> None:
    (first, second), _ = succeed("option", tmp_path, name)
    assert_same(first, second)
    assert widths_of(first).items() >= ALL_HALVED.items()
    assert all(tensor.isfinite().all() for tensor in first["state"].values())


@pytest.mark.parametrize("name", ["ema", "swa", "two names"])
def test_averages_under_ddp(tmp_path: Path, name: str) -> None:
    (first, second), _ = succeed("averaged", tmp_path, name)
    assert_same(first, second)
    assert widths_of(first).items() >= ALL_HALVED.items()


def test_processes_may_hold_different_copies(tmp_path: Path) -> None:
    """Those of the very weights are the network of the cut, refitted on the first process."""
    found, _ = succeed("held", tmp_path)
    assert_same(found[0]["state"], found[1]["state"])
    assert widths_of(found[0]).items() >= ALL_HALVED.items()
    for place, (live, held) in enumerate((rank["state"], rank["held"]) for rank in found):
        own = "whole of the second" if place else "part of the first"
        assert [name for name, value in held.items() if value is None] == [
            "part of the first" if place else "whole of the second"
        ]
        for name in (own, "part", "tensors"):
            for key, value in live.items():
                copied = held[name].get(key, held[name].get(key.removeprefix("net.")))
                if "bn" not in key:  # statistics of its own stay, and scales with them
                    torch.testing.assert_close(copied, value)
        for key, value in held["frozen"].items():
            assert value.shape == live[f"net.{key}"].shape
    first, second = (rank["held"]["frozen"]["bn1.weight"] for rank in found)
    assert not torch.equal(first, second)  # nor do averages of one process become those of all


def test_norms_over_fewer_channels_under_ddp(tmp_path: Path) -> None:
    """Their scale, which the first process fits, is that of all."""
    (first, second), _ = succeed("normed", tmp_path)
    assert_same(first, second)
    assert first["state"]["net.2.weight"].shape == (4,)
    assert first["averages"][0]["module.net.2.weight"].shape == (4,)


def test_the_guard_under_ddp(tmp_path: Path) -> None:
    (first, second), _ = succeed("guarded", tmp_path)
    assert_same(first, second)
    assert widths_of(first)["net.conv1"] == 6
    assert len(first["kept"]) == 2
    assert len(list((tmp_path / "records").iterdir())) == 2


@pytest.mark.parametrize(("outcome", "comparisons"), [("works", 1), ("fails", 0)])
def test_the_first_process_times_a_cut(tmp_path: Path, outcome: str, comparisons: int) -> None:
    (first, second), outputs = succeed("timed", tmp_path, outcome)
    assert_same(first["state"], second["state"])
    assert first["latency"] == second["latency"]
    assert [len(found) for found in first["latency"]] == [comparisons]
    warned = ["could not be measured (RuntimeError: no clock)" in output for output in outputs]
    assert warned == [outcome == "fails", False]


def test_the_first_process_meets_a_target_in_time(tmp_path: Path) -> None:
    (first, second), _ = succeed("in_time", tmp_path, "met")
    assert_same(first["state"], second["state"])
    assert first["kept"] == second["kept"]
    assert first["times"] == second["times"]
    once, again = first["times"]
    assert (once["taken"], again["taken"]) == (1.0, once["measured"])
    assert again["after"]["median"] / once["before"]["median"] == pytest.approx(0.75, abs=0.05)
    assert (tmp_path / "records" / "layer_times.json").is_file()


def test_on_the_first_process_a_target_in_time_is_refused_for_all(tmp_path: Path) -> None:
    codes, outputs = launch("in_time", tmp_path, "refused")
    assert all(code not in (0, None) for code in codes)
    assert "latency=0.01 asks for" in outputs[0]
    assert "Pruning failed on rank 0: ValueError: selection.latency=0.01 asks for" in outputs[1]


@pytest.mark.parametrize("moment", ["epoch0", "epoch1", "epoch2"])
def test_resume_under_ddp(tmp_path: Path, moment: str) -> None:
    (first, second), _ = succeed("resumed", tmp_path, moment)
    assert_same(first, second)
    assert widths_of(first).items() >= ALL_HALVED.items()
    assert_same(first, torch.load(tmp_path / "whole0.pt"))


@pytest.mark.parametrize("how", ["manual", "static", "find_unused", "accumulate"])
def test_a_teacher_under_ddp(tmp_path: Path, how: str) -> None:
    """On every rank as a loss written by hand, in whose backward pass DDP reduces the same."""
    (first, second), outputs = succeed("taught", tmp_path, how)
    assert not any("distillation is set" in output for output in outputs)
    assert_same(first["optimizers"], second["optimizers"])
    for rank, found in enumerate((first, second)):
        by_hand = torch.load(tmp_path / f"whole{rank}.pt")
        assert_same(found["state"], by_hand["state"])
        assert_same(found["optimizers"], by_hand["optimizers"])


def test_a_teacher_after_a_resume_under_ddp(tmp_path: Path) -> None:
    (first, second), _ = succeed("taught_again", tmp_path)
    assert_same(first, second)
    assert_same(first, torch.load(tmp_path / "whole0.pt"))


@pytest.mark.parametrize("tolerance", ["", "0.3"])
def test_the_first_process_measures_the_volume(tmp_path: Path, tolerance: str) -> None:
    (first, second), _ = succeed("measured", tmp_path, tolerance)
    assert_same(first["state"], second["state"])
    assert first["trade_off"] == second["trade_off"]
    assert first["kept"] == second["kept"]
    # Half of the samples of one of two processes.
    assert first["trade_off"]["depths"][0]["fidelity"]["samples"] == 120
    assert first["samples"] == [240]
    place = first["trade_off"]["tolerated" if tolerance else "knee"]
    assert place is not None
    chosen = first["trade_off"]["depths"][place]["widths"]
    assert {name: len(kept) for name, kept in first["kept"][0].items()} == chosen
    assert widths_of(first).items() >= chosen.items()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("width", "The processes disagree on 'net.conv1.weight'"),
        ("groups", "The processes disagree on 'net.fc1'"),
        ("capture", "KeyError: 'label of rank 1'"),
        ("accuracy", "KeyError: 'label of rank 1'"),
        ("nan", "Layer 'net.conv1' gave NaN or infinite activations"),
        ("decision", "ValueError: no curve for net.conv2"),
        ("empty", "The validation loader is empty"),
    ],
)
def test_what_fails_on_one_rank_fails_on_all(tmp_path: Path, name: str, message: str) -> None:
    codes, outputs = launch("failure", tmp_path, name)
    assert codes == [1, 1]
    for output in outputs:
        assert message in output


def test_synchronised_batchnorm_is_cut_like_batchnorm() -> None:
    images = (noisy_images(4, seed=3).tensors[0],)
    plain, synchronised = conv_net().eval(), nn.SyncBatchNorm.convert_sync_batchnorm(conv_net()).eval()
    for net in (plain, synchronised):
        groups = trace_groups(net, images).groups
        plan = build_plan(groups, {group.name: list(range(group.width // 2)) for group in groups})
        prune(net, plan, images, groups=groups)
    assert isinstance(synchronised.bn1, nn.SyncBatchNorm)
    assert widths(plain) == widths(synchronised)
    torch.testing.assert_close(synchronised(*images), plain(*images))
