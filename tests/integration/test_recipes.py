"""Every recipe is built from its YAML, says what it should, and runs for a few batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import image_files
from jsonargparse import ArgumentParser
from torch import nn

from acsp_lightning import SelectionConfig
from acsp_lightning.cli import main
from acsp_lightning.structure.verification import prunable_groups
from acsp_lightning.zoo import ImageClassifier, RestartingStepLR

pytestmark = pytest.mark.recipes

RECIPES = {path.stem: path for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml")}
PUBLISHED = [
    "cifar10_mobilenetv2",
    "cifar10_resnet56",
    "cifar10_vgg16",
    "cifar100_densenet40",
    "cifar100_vgg16",
    "cifar100_vgg19",
    "imagenet_mobilenetv2",
    "imagenet_resnet50",
]


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(RECIPES[name].read_text())
    return content


def callback_arguments(recipe: dict[str, Any]) -> dict[str, Any]:
    (callback,) = recipe["trainer"]["callbacks"]
    arguments: dict[str, Any] = callback["init_args"]
    return arguments


def model_arguments(recipe: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = recipe["model"]["init_args"]
    return arguments


def network_of(recipe: dict[str, Any]) -> nn.Module:
    """The recipe's network, built as the command line builds it, but for weights to download."""
    spec = model_arguments(recipe)["network"]
    spec["init_args"].pop("weights", None)
    parser = ArgumentParser()
    parser.add_argument("--network", type=nn.Module)
    network = parser.instantiate(parser.parse_object({"network": spec})).network
    assert isinstance(network, nn.Module)
    return network


def test_every_published_row_has_both_forms() -> None:
    layerwise = [f"{name}_layerwise" for name in PUBLISHED]
    assert RECIPES.keys() == {*PUBLISHED, *layerwise, "digits_vgg", "digits_vgg_paper"}


@pytest.mark.parametrize("name", ["digits_vgg_paper", *(f"{name}_layerwise" for name in PUBLISHED)])
def test_the_published_rule_is_the_paper_preset(name: str) -> None:
    recipe = read(name)
    found = SelectionConfig(**callback_arguments(recipe)["selection"])
    grid = 4 if name.startswith("imagenet") else None  # the header of these says why
    assert found == replace(SelectionConfig.paper(), grid=grid)
    assert callback_arguments(recipe)["recovery"] == "none"


@pytest.mark.parametrize("name", PUBLISHED)
def test_layer_by_layer_visits_every_layer_with_the_published_tuning(name: str) -> None:
    recipe = read(f"{name}_layerwise")
    network = network_of(recipe)
    side = 64 if name.startswith("imagenet") else 32  # widths do not depend on the side
    module = ImageClassifier(network)
    excluded = callback_arguments(recipe).get("exclude", [])
    groups = prunable_groups(module, (torch.randn(2, 3, side, side),), exclude=excluded).groups
    layers = len(groups)
    # The input layer is left alone.
    first = next(name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    assert first not in {side.layer for group in groups for side in group.producers}
    epochs = callback_arguments(recipe)["epochs"]
    assert callback_arguments(recipe)["layers_per_epoch"] == 1
    assert len(epochs) == layers

    # Two epochs of a quarter, or three; the first step follows epoch 0, and each the one before.
    tuning = 3 if name.startswith("imagenet") else 2
    rates = [0.003, 0.003, 0.0015] if name.startswith("imagenet") else [0.01, 0.005]
    assert recipe["trainer"]["limit_train_batches"] == 0.25
    assert [epoch + 1 for epoch in epochs] == list(range(1, recipe["trainer"]["max_epochs"], tuning))
    assert recipe["trainer"]["max_epochs"] == 1 + tuning * layers
    scheduler = model_arguments(recipe)["lr_scheduler"]
    assert scheduler["class_path"] == "acsp_lightning.zoo.RestartingStepLR"
    optimizer = torch.optim.SGD(
        [torch.zeros(1, requires_grad=True)], **model_arguments(recipe)["optimizer"]["init_args"]
    )
    schedule = RestartingStepLR(optimizer, **scheduler["init_args"])
    found = []
    for _ in range(recipe["trainer"]["max_epochs"]):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([0.0, *rates * layers])


@pytest.mark.parametrize("name", PUBLISHED)
def test_both_forms_differ_in_the_pruning_and_the_tuning_alone(name: str) -> None:
    one_shot, layerwise = read(name), read(f"{name}_layerwise")
    assert one_shot["data"] == layerwise["data"]
    for recipe in (one_shot, layerwise):
        del model_arguments(recipe)["lr_scheduler"]
    assert one_shot["model"] == layerwise["model"]
    # As many images of tuning, to the next whole epoch.
    quarters = layerwise["trainer"]["max_epochs"] - 1
    assert one_shot["trainer"]["max_epochs"] - 1 == -(-quarters // 4)


# Two layers or so of every network: clustering all of them takes its time, and is tested elsewhere.
SOME_LAYERS = {
    "vgg16_bn": "network.features.stage1.*",
    "vgg19_bn": "network.features.stage1.*",
    "resnet56": "network.layer3.[01].conv1",
    "densenet40": "network.blocks.transition1.conv",
    "mobilenet_v2": "network.features.[23].conv.0.0",
    "resnet50": "network.layer1.0.conv[12]",
}


def shortened(
    recipe: dict[str, Any], images: Path, monkeypatch: pytest.MonkeyPatch, side: int | None = None
) -> dict[str, Any]:
    """The recipe on a few images, of the shape that it is for or of ``side``, cut after epoch 0."""
    trainer, model, data = recipe["trainer"], model_arguments(recipe), recipe["data"]["init_args"]
    source = recipe["data"]["class_path"].rpartition(".")[2]
    trainer.update(max_epochs=2, limit_train_batches=1, log_every_n_steps=1, accelerator="cpu")
    trainer.update(enable_checkpointing=False, num_sanity_val_steps=0, limit_test_batches=1)
    callback_arguments(recipe).update(epochs=[0], report_plots=False)
    if source == "DigitsDataModule":
        trainer["limit_train_batches"] = 16
        return recipe
    network = model["network"]["class_path"].rpartition(".")[2]
    callback_arguments(recipe)["include"] = [SOME_LAYERS[network]]
    if source == "CIFARDataModule":
        image_files.write_cifar(images, data["num_classes"], monkeypatch)
        data.update(root=str(images), batch_size=16)
        return recipe
    assert source == "ImageFolderDataModule"
    classes = image_files.CLASSES[:2]
    data["size"] = side or data["size"]
    image_files.write_folder(images / "train", classes, each=4, side=data["size"])
    image_files.write_folder(images / "val", classes, each=1, side=data["size"])
    data.update(root=str(images), batch_size=2, val_share=0.5, num_workers=0)
    model["network"]["init_args"] = {"num_classes": len(classes)}
    model["num_classes"] = len(classes)
    return recipe


# Nothing is learned in so few batches.
@pytest.mark.filterwarnings("ignore:The (network classifies|cut took more than half)")
@pytest.mark.filterwarnings("ignore:Cuts cannot be measured on")
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_cuts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tmp_path / "short.yaml"
    # The images of both forms are the same, and large ones take their time.
    side = 64 if name.startswith("imagenet") and name.endswith("layerwise") else None
    short.write_text(yaml.safe_dump(shortened(read(name), tmp_path / "images", monkeypatch, side)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["acsp-lightning", "fit", f"--config={short}"])
    main()
    (record,) = tmp_path.glob("lightning_logs/*/*/acsp/*/report.json")
    cut = yaml.safe_load(record.read_text())
    assert cut["after"]["flops"] < cut["before"]["flops"]
