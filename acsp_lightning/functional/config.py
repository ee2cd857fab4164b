"""How channels are selected: every choice in one frozen record that a YAML file can hold."""

from dataclasses import dataclass
from typing import Literal, Self, get_args, get_type_hints


@dataclass(frozen=True)
class SelectionConfig:
    """How many channels of a layer stay, and which.

    Attributes:
        grid: pool activation maps to at most grid x grid positions before their moments are taken;
            None: every pixel, as in the paper.
        weighting: "contribution" clusters with each channel weighted by what it contributes to the
            next layer; "none" counts all channels alike, as in the paper.
        curve: curve whose knee decides. "damage" is one curve for the whole network: what the layers
            that read the channels lose, against the FLOPs that are kept; it spends FLOPs where they do
            the most. "coverage", the share of the weighted deviation that k medoids take away, and
            "mss", the paper's mean simplified silhouette, have one knee for every layer.
        interpolation: "interp1d" looks for the knee on the curve itself; "polynomial" on a
            polynomial fitted to it, as in the paper.
        degree: degree of that polynomial, at least 1. Degree 2 keeps about half of every layer,
            whatever the data.
        representative: what stays of each cluster: its "medoid", or the channel of the largest
            "weight" (L1 norm of its filter), as in the paper.
        keep: fixed share of the channels to keep, in (0, 1], instead of the knee.
        flops: share of the network's FLOPs to keep, in (0, 1], instead of the knee: the least damage
            at that many FLOPs, or with the other curves one level for all layers. Not together with
            ``keep``.
        min_channels: channels that stay in any case, at least 2; a narrower layer stays whole.
        criterion: "acsp" keeps the representatives of the clusters; for ablation, at the same
            number of channels, "l1" keeps the largest filters, "mean_jm" those that separate the
            classes best on average, "random" any.
        class_pairs: take the distances over this many class pairs, drawn at random, at least 2; the
            error that this makes is reported. None: all of them, exactly; at 1000 classes and many
            positions that takes minutes.
        seed: seed of the "random" criterion and of ``class_pairs``, not negative.

    Raises:
        ValueError: if a field is of the wrong type or out of its range, naming it, what was found
            and what is allowed.
    """

    grid: int | None = 1
    weighting: Literal["contribution", "none"] = "contribution"
    curve: Literal["damage", "coverage", "mss"] = "damage"
    interpolation: Literal["interp1d", "polynomial"] = "interp1d"
    degree: int = 2
    representative: Literal["weight", "medoid"] = "medoid"
    keep: float | None = None
    flops: float | None = None
    min_channels: int = 2
    criterion: Literal["acsp", "l1", "random", "mean_jm"] = "acsp"
    class_pairs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.grid is not None:
            self._check_integer("grid", at_least=1)
        if self.class_pairs is not None:
            self._check_integer("class_pairs", at_least=2)
        self._check_integer("degree", at_least=1)
        self._check_integer("min_channels", at_least=2)
        self._check_integer("seed", at_least=0)
        self._check_share("keep")
        self._check_share("flops")
        for name in ("weighting", "curve", "interpolation", "representative", "criterion"):
            self._check_choice(name)
        if self.keep is not None and self.flops is not None:
            raise ValueError(
                f"keep={self.keep} and flops={self.flops} both fix the volume; set one of them"
            )

    @property
    def is_global(self) -> bool:
        """Whether the width of a layer depends on the others."""
        return self.keep is None and (self.flops is not None or self.curve == "damage")

    @classmethod
    def paper(cls) -> Self:
        """The published recipe to the letter (arXiv 2505.13225)."""
        return cls(
            grid=None,
            weighting="none",
            curve="mss",
            interpolation="polynomial",
            degree=2,
            representative="weight",
        )

    def _check_integer(self, name: str, at_least: int) -> None:
        value = getattr(self, name)
        # True is an int to Python, but never a count anyone meant.
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise ValueError(f"{name} is {value!r}; it must be an integer >= {at_least}")

    def _check_share(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= 1:
            raise ValueError(f"{name} is {value!r}; it must be a number in (0, 1], or None")

    def _check_choice(self, name: str) -> None:
        value, allowed = getattr(self, name), get_args(get_type_hints(type(self))[name])
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
