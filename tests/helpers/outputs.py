"""What networks of other libraries return instead of a tensor."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


def second(outputs):
    return outputs[1]


class ModelOutput(OrderedDict[str, Tensor]):
    """As that of Hugging Face's transformers: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(name)


@dataclass
class Scored:
    logits: Tensor
    loss: Tensor | None = None


class Named(NamedTuple):
    features: Tensor
    logits: Tensor
