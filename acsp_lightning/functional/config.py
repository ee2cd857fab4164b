"""How channels are selected: one frozen dataclass that a YAML file can hold."""

from dataclasses import dataclass
from typing import Literal, Self, get_args, get_type_hints


@dataclass(frozen=True)
class SelectionConfig:
    """How many channels of a layer are kept, and which.

    Attributes:
        grid: pool activation maps to at most grid x grid positions before their moments are
            computed; None: every pixel, as in the paper.
        weighting: "contribution" weights each channel in the clustering by what it contributes to
            the next layer; "none" weights all channels equally, as in the paper.
        curve: curve whose knee sets the width. "measured" and "damage" are one curve for the whole
            network, along the path that gives up the least damage per FLOP, damage being what the
            consumers of the channels lose: "measured" makes cuts of several depths on a copy and
            compares it with the uncut network on samples held back from the capture, "damage" is
            computed without a cut. "coverage", the share of the weighted deviation that k medoids
            remove, and "mss", the paper's mean simplified silhouette, have one knee for every layer.
        interpolation: "interp1d" locates the knee on the curve itself, "polynomial" on a polynomial
            fitted to it, as in the paper.
        degree: degree of that polynomial, at least 1. Degree 2 keeps about half of every layer,
            whatever the data.
        representative: channel kept from each cluster: its "medoid", or the one of the largest
            "weight" (L1 norm of its filter), as in the paper.
        keep: fixed share of the channels to keep, in (0, 1], instead of the knee.
        flops: share of the network's FLOPs to keep, in (0, 1], instead of the knee: the least
            damage within these FLOPs or, with "coverage" and "mss", one level for all layers. Cannot
            be combined with ``keep``.
        latency: share of the time of one forward pass to keep, in (0, 1], instead of the knee: the
            least damage within this time, measured where the network is, or where ``latency_table`` was
            written, under the conditions of ``latency_at``. Needs curve "measured" or "damage"; cannot
            be combined with ``keep`` or ``flops``.
        tolerance: accuracy that a cut may cost, in [0, 1), straight after it and before any training,
            instead of the knee: the deepest cut whose measured loss is at most this much, 0.01 being
            one point, counted from the first uncut network. The losses of all measured depths are
            smoothed together, weighted by their standard errors. Needs curve "measured". With
            ``flops`` or ``latency`` the cut stops short of that target, with a warning, where it would
            cost more.
        min_channels: minimum number of channels to keep, at least 2; a narrower layer is not cut.
        criterion: "acsp" keeps the representatives of the clusters; for ablations at the same
            width, "l1" keeps the largest filters, "mean_jm" the channels that separate the classes
            best on average, "random" a random choice.
        class_pairs: number of class pairs, drawn at random, that the distances are computed from,
            at least 2; the sampling error is reported. None: all pairs, exactly; with 1000 classes
            and many positions this takes minutes.
        seed: seed of the "random" criterion and of ``class_pairs``, not negative.

    Raises:
        ValueError: if a field is of the wrong type or out of range; the message names the field,
            its value and what is allowed.
    """

    grid: int | None = 1
    weighting: Literal["contribution", "none"] = "contribution"
    curve: Literal["measured", "damage", "coverage", "mss"] = "measured"
    interpolation: Literal["interp1d", "polynomial"] = "interp1d"
    degree: int = 2
    representative: Literal["weight", "medoid"] = "medoid"
    keep: float | None = None
    flops: float | None = None
    latency: float | None = None
    tolerance: float | None = None
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
        self._check_share("latency")
        for name in ("weighting", "curve", "interpolation", "representative", "criterion"):
            self._check_choice(name)
        self._check_one_target()
        self._check_tolerance()

    @property
    def by_damage(self) -> bool:
        """Whether widths are those of a point on the path of least damage."""
        return self.keep is None and self.curve in ("measured", "damage")

    @property
    def is_measured(self) -> bool:
        """Whether cuts are made on a copy and measured before the volume is decided."""
        return self.by_damage and (
            self.tolerance is not None
            or (self.curve == "measured" and self.flops is None and self.latency is None)
        )

    @property
    def is_global(self) -> bool:
        """Whether the width of a layer depends on the others."""
        return self.by_damage or (self.keep is None and self.flops is not None)

    @classmethod
    def paper(cls) -> Self:
        """The configuration of the paper, exactly as published (arXiv 2505.13225)."""
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
        # bool is a subclass of int, but never meant as a count.
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise ValueError(f"{name} is {value!r}; it must be an integer >= {at_least}")

    def _check_share(self, name: str) -> None:
        value = getattr(self, name)
        if value is None:
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= 1:
            raise ValueError(f"{name} is {value!r}; it must be a number in (0, 1], or None")

    def _check_one_target(self) -> None:
        targets = {name: getattr(self, name) for name in ("keep", "flops", "latency")}
        given = [f"{name}={value}" for name, value in targets.items() if value is not None]
        if len(given) > 1:
            each = "both" if len(given) == 2 else "all"
            raise ValueError(f"{' and '.join(given)} {each} fix the volume; set one of them")
        if self.latency is not None and self.curve not in ("measured", "damage"):
            raise ValueError(
                f"latency={self.latency} needs curve='measured' or 'damage', whose path it is met on; "
                f"curve={self.curve!r} has none"
            )

    def _check_tolerance(self) -> None:
        value = self.tolerance
        if value is None:
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < 1:
            raise ValueError(
                f"tolerance is {value!r}; it must be a number in [0, 1), 0.01 being one point of "
                "accuracy, or None"
            )
        if self.keep is not None:
            raise ValueError(
                f"keep={self.keep} fixes the volume and tolerance={value} bounds it; set one of them"
            )
        if self.curve != "measured":
            raise ValueError(
                f"tolerance={value} needs curve='measured'; curve={self.curve!r} measures no accuracy"
            )

    def _check_choice(self, name: str) -> None:
        value, allowed = getattr(self, name), get_args(get_type_hints(type(self))[name])
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
