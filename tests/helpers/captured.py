"""What a network computes on 18 images, captured."""

from typing import Any

from torch import nn

from acsp_lightning.capture.hooks import ActivationCapture
from acsp_lightning.capture.statistics import Activations
from acsp_lightning.structure.groups import ChannelGroup
from acsp_lightning.structure.tracing import trace_groups
from helpers.fits import noisy_images

IMAGES, LABELS = noisy_images(18, seed=2).tensors


def captured(model: nn.Module, **options: Any) -> tuple[dict[str, ChannelGroup], Activations]:
    model.eval()
    groups = trace_groups(model, (IMAGES[:2],), **options).groups
    capture = ActivationCapture(model, groups, None, num_classes=3)
    capture.attach()
    capture.expect(LABELS)
    model(IMAGES)
    capture.detach()
    return {group.name: group for group in groups}, capture.finish()
