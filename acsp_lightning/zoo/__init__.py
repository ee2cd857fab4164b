"""Reference networks, the classifier that trains them, and the data of the recipes.

Networks with published names are their variants for images of 32x32 pixels.
"""

from acsp_lightning.zoo.cifar import CIFARDataModule
from acsp_lightning.zoo.classifier import ImageClassifier
from acsp_lightning.zoo.densenet import DenseNet, densenet40
from acsp_lightning.zoo.digits import DigitsDataModule
from acsp_lightning.zoo.folder import ImageFolderDataModule
from acsp_lightning.zoo.mobilenet import mobilenet_v2
from acsp_lightning.zoo.resnet import ResNet, resnet20, resnet32, resnet44, resnet56
from acsp_lightning.zoo.schedules import RestartingStepLR
from acsp_lightning.zoo.vgg import VGG, vgg16_bn, vgg19_bn
from acsp_lightning.zoo.weights import load_weights

__all__ = [
    "VGG",
    "CIFARDataModule",
    "DenseNet",
    "DigitsDataModule",
    "ImageClassifier",
    "ImageFolderDataModule",
    "ResNet",
    "RestartingStepLR",
    "densenet40",
    "load_weights",
    "mobilenet_v2",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "vgg16_bn",
    "vgg19_bn",
]
