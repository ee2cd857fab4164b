"""Reference networks, the classifier that trains them, and the data that recipes name."""

from acsp_lightning.zoo.classifier import ImageClassifier
from acsp_lightning.zoo.digits import DigitsDataModule
from acsp_lightning.zoo.vgg import VGG

__all__ = ["VGG", "DigitsDataModule", "ImageClassifier"]
