"""Typed objects from trees: values that fit, errors with their key, and the completed tree."""

import enum
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import torch
from torch import Tensor

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.interfaces import (
    Channel,
    Codec,
    Interface,
    Json,
    Latent,
    Measurement,
    Metric,
    Prediction,
    Samples,
    Schedule,
    ScoreNetwork,
)
from kldm.recipe import build, describe, read_recipe, summary, write_recipe
from kldm.registry import codec, metric, network, schedule, schedules


@schedule("building_flat.v1")
@attrs.frozen(kw_only=True)
class Flat:
    """A schedule that stands still.

    Args:
        level: of the noise.
    """

    level: float = attrs.field(default=0.5, validator=attrs.validators.gt(0))

    def alpha(self, s: Tensor) -> Tensor:
        return s

    def sigma(self, s: Tensor) -> Tensor:
        return s

    def beta(self, s: Tensor) -> Tensor:
        return s


@codec("building_plain.v1")
@attrs.frozen(kw_only=True)
class Plain:
    scale: float | None = None
    schedule: Schedule = attrs.field(factory=Flat)

    @property
    def channel(self) -> Channel:
        return Channel("plain", 6, "crystal", "real")

    def encode(self, crystals: Crystals) -> Tensor:
        return crystals.lattice

    def decode(self, values: Tensor, into: Crystals) -> Crystals:
        return into


@metric("building_count.v1")
class Count:
    def __init__(self, *, tolerances: Mapping[str, float] | None = None, strict: bool = False) -> None:
        self.tolerances, self.strict = tolerances, strict
        if tolerances == {}:
            raise KldmError("is empty", place="tolerances", remedy="leave it out")

    def measure(self, samples: Samples) -> Measurement:
        return Measurement({})


@network("building_wide.v1")
class Wide(torch.nn.Module):
    def __init__(self, interface: Interface, /, *, hidden: int = 512, codec: Codec = Plain(scale=2.0)) -> None:
        super().__init__()
        self.interface, self.hidden, self.codec = interface, hidden, codec

    def forward(self, latent: Latent, s: Tensor, layout: Layout) -> Prediction:
        return {}


@network("building_forgot_the_slash.v1")
class Forgetful(Wide):
    def __init__(self, interface: Interface, *, hidden: int = 1) -> None:
        super().__init__(interface, hidden=hidden)


CPU = torch.device("cpu")
WIDE = functools.partial(Wide, hidden=64)


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


@dataclass(frozen=True)
class Limits:
    low: int
    names: list[str] = field(default_factory=lambda: ["a"])


@attrs.frozen(kw_only=True)
class Part:
    epochs: int = 3
    rate: float = 1e-3
    quick: bool = False
    mode: Literal["matrix", "vector"] = "matrix"
    level: Level = Level.LOW
    folder: Path = Path("runs")
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] | None = None
    anything: Json = None
    either: int | float | Literal["auto"] = "auto"
    _hidden: str = "h"
    double: int = attrs.field(default=attrs.Factory(lambda self: 2 * self.epochs, takes_self=True))
    device: torch.device = CPU


class Loop:
    def __init__(self, *, turns: int = 2, weights: Mapping[str, float] | None = None) -> None:
        self.turns = turns
        if weights and min(weights.values()) < 0:
            raise KldmError("is negative", place=f"weights.{min(weights, key=weights.__getitem__)}")


@attrs.frozen(kw_only=True)
class Whole:
    name: str
    codec: Codec
    network: Callable[[Interface], ScoreNetwork] = WIDE
    metrics: Mapping[str, Metric] = attrs.field(factory=dict)
    schedules: Sequence[Schedule] = ()
    part: Part = attrs.field(factory=Part)
    limits: Limits | None = None
    loop: Loop | None = None


def whole(**sections: Any) -> dict[str, Any]:
    return {"name": "x", "codec": {"@codecs": "building_plain.v1"}} | sections


FLAT = {"@schedules": "building_flat.v1", "level": 0.5}
PART: dict[str, Any] = {
    "epochs": 3,
    "rate": 1e-3,
    "quick": False,
    "mode": "matrix",
    "level": "low",
    "folder": "runs",
    "sizes": [1, 2],
    "pair": None,
    "anything": None,
    "either": "auto",
    "hidden": "h",
}


def test_every_default_is_written_into_the_tree() -> None:
    given = whole()
    built, complete = build(given, Whole)
    assert complete == {
        "name": "x",
        "codec": {"@codecs": "building_plain.v1", "scale": None, "schedule": FLAT},
        "network": {
            "@networks": "building_wide.v1",
            "hidden": 64,
            "codec": {"@codecs": "building_plain.v1", "scale": 2.0, "schedule": FLAT},
        },
        "metrics": {},
        "schedules": [],
        "part": PART | {"double": 6},
        "limits": None,
        "loop": None,
    }
    assert given == whole()
    assert built.codec == Plain()
    assert built.part == Part()


def test_the_complete_tree_builds_the_same_through_a_file(tmp_path: Path) -> None:
    sections = whole(
        metrics={"count": {"@metrics": "building_count.v1", "tolerances": {"angle": 5, "length": 0.2}}},
        schedules={"first": FLAT, "second": {"@schedules": "building_flat.v1", "level": 2}},
        part={"epochs": 7, "pair": [1, "b"], "level": "HIGH", "anything": {"deep": [1, {"x": None}]}, "either": 2},
        limits={"low": 1},
    )
    built, complete = build(sections, Whole)
    write_recipe({"all": complete}, tmp_path / "run.cfg")
    again, twice = build(read_recipe(tmp_path / "run.cfg")["all"], Whole)
    assert twice == complete
    assert (again.codec, again.part, again.limits, again.schedules) == (
        built.codec,
        built.part,
        built.limits,
        built.schedules,
    )
    assert built.schedules == (Flat(), Flat(level=2.0))
    assert built.limits == Limits(1, ["a"])
    assert (built.part.pair, built.part.level, built.part.double, type(built.part.either)) == (
        (1, "b"),
        Level.HIGH,
        14,
        int,
    )
    count = built.metrics["count"]
    assert isinstance(count, Count)
    assert count.tolerances == {"angle": 5.0, "length": 0.2}


def test_a_network_waits_for_its_interface() -> None:
    built, _ = build(whole(network={"@networks": "building_wide.v1", "hidden": 8}), Whole)
    interface = Interface((), ())
    made = built.network(interface)
    assert isinstance(made, Wide)
    assert (made.interface, made.hidden, made.codec) == (interface, 8, Plain(scale=2.0))


PLAIN = {"@codecs": "building_plain.v1"}
COUNT = {"@metrics": "building_count.v1"}
NETWORK = {"@networks": "building_wide.v1"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"codec": {"@codecs": "building_plane.v1"}},
         "codec: @codecs holds no 'building_plane.v1'; did you mean 'building_plain.v1'?"),
        ({"codec": PLAIN | {"scal": 1}}, "codec.scal: unknown key; did you mean 'scale'?"),
        ({"codec": PLAIN | {"scale": "six"}}, 'codec.scale: wants float or null, got "six"'),
        ({"codec": {"@metrics": "building_count.v1"}}, "codec: wants @codecs, got @metrics"),
        ({"codec": PLAIN | {"@metrics": "building_count.v1"}}, "codec: has several @-keys (@codecs, @metrics)"),
        ({"codec": {"scale": 1}}, "codec: missing @codecs; it names one of"),
        ({"codec": 3}, "codec: wants a section with @codecs, got 3"),
        ({"codec": {"@codecs": 1}}, "codec.@codecs: wants str, got 1"),
        ({"codec": PLAIN | {"schedule": FLAT | {"level": -1.0}}}, "codec.schedule: 'level' must be > 0: -1.0"),
        ({"network": NETWORK | {"hiden": 1}}, "network.hiden: unknown key; did you mean 'hidden'?"),
        ({"network": NETWORK | {"interface": 1}}, "network.interface: unknown key"),
        ({"network": {"@networks": "building_forgot_the_slash.v1"}}, "put a '/' after them"),
        ({"metrics": {"a": COUNT | {"tolerances": {}}}}, "metrics.a.tolerances: is empty; leave it out"),
        ({"metrics": {"a": COUNT | {"tolerances": {"x": "1"}}}}, 'metrics.a.tolerances.x: wants float, got "1"'),
        ({"metrics": [1]}, "metrics: wants section of @metrics, got [1]"),
        ({"schedules": {"one": PLAIN}}, "schedules.one: wants @schedules, got @codecs"),
        ({"schedules": "flat"}, 'schedules: wants list of @schedules, got "flat"'),
        ({"part": {"epochs": "six"}}, 'part.epochs: wants int, got "six"'),
        ({"part": {"epochs": True}}, "part.epochs: wants int, got true"),
        ({"part": {"epochs": 3.0}}, "part.epochs: wants int, got 3.0"),
        ({"part": {"rate": True}}, "part.rate: wants float, got true"),
        ({"part": {"quick": 1}}, "part.quick: wants bool, got 1"),
        ({"part": {"mode": "vectr"}},
         "part.mode: wants \"matrix\" or \"vector\", got \"vectr\"; did you mean 'vector'?"),
        ({"part": {"level": "lo"}}, "did you mean 'low'?"),
        ({"part": {"folder": 1}}, "part.folder: wants path, got 1"),
        ({"part": {"sizes": [1, "2"]}}, 'part.sizes.1: wants int, got "2"'),
        ({"part": {"pair": [1, "a", 2]}}, "part.pair: wants"),
        ({"part": {"either": "aut"}}, "part.either: wants int or float or \"auto\", got \"aut\"; did you mean 'auto'?"),
        ({"part": {"device": "cpu"}}, "part.device: a recipe cannot hold its type device"),
        ({"part": {"@metrics": "building_count.v1"}}, "part: takes no @metrics"),
        ({"part": 3}, "part: wants section Part, got 3"),
        ({"loop": {"turn": 1}}, "loop.turn: unknown key; did you mean 'turns'?"),
        ({"loop": {"weights": {"a": 1, "b": -1}}}, "loop.weights.b: is negative"),
        ({"limits": {}}, "limits.low: missing; it wants int"),
        ({"nam": "x"}, "nam: unknown key; did you mean 'name'?"),
    ],
)  # fmt: skip
def test_mistakes_are_told_at_their_key_with_the_nearest_right_answer(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(KldmError) as caught:
        build(whole(**sections), Whole)
    assert message in str(caught.value)
    assert caught.value.place


def test_a_plain_class_is_a_section_too() -> None:
    built, complete = build(whole(loop={"turns": 5}), Whole)
    assert built.loop is not None
    assert built.loop.turns == 5
    assert complete["loop"] == {"turns": 5, "weights": None}


def test_what_is_missing_is_told_with_what_is_wanted() -> None:
    with pytest.raises(KldmError, match=r"^name: missing; it wants str$"):
        build({"codec": PLAIN}, Whole)
    with pytest.raises(KldmError, match=r"^codec: missing section; it wants @codecs$"):
        build({"name": "x"}, Whole)


def test_an_object_that_does_not_satisfy_its_shelf_is_refused() -> None:
    schedules.put("building_impostor.v1", Plain)  # past the typed decorator, as untyped user code can be
    with pytest.raises(
        KldmError, match=r"schedules\.0: 'building_impostor\.v1' built a Plain, which has no alpha, sigma"
    ):
        build(whole(schedules=[{"@schedules": "building_impostor.v1"}]), Whole)


def test_a_positional_only_argument_needs_a_parameter_that_waits() -> None:
    @schedule("building_waiting.v1")
    def waiting(level: float, /) -> Flat:
        return Flat(level=level)

    with pytest.raises(KldmError, match="waits for 1 positional-only"):
        build(whole(schedules=[{"@schedules": "building_waiting.v1"}]), Whole)


def test_plain_functions_and_interfaces_are_built_too() -> None:
    def run(*, seed: int, schedule: Schedule = Flat(level=3.0)) -> tuple[int, Schedule]:
        return seed, schedule

    assert build({"seed": 1}, run) == ((1, Flat(level=3.0)), {"seed": 1, "schedule": FLAT | {"level": 3.0}})
    built, complete = build({"@schedules": "building_flat.v1"}, Schedule)
    assert (built, complete) == (Flat(), FLAT)


def test_components_describe_themselves() -> None:
    assert summary(Flat) == "A schedule that stands still."
    assert describe(Flat) == [("level", "float", "0.5")]
    assert describe(Wide) == [
        ("hidden", "int", "512"),
        (
            "codec",
            "@codecs",
            json.dumps({"@codecs": "building_plain.v1", "scale": 2.0, "schedule": FLAT}),
        ),
    ]
    rows = {name: (kind, default) for name, kind, default in describe(Whole)}
    assert rows["name"] == ("str", "required")
    assert rows["network"] == ("@networks", '{"@networks": "building_wide.v1", "hidden": 64}')
    assert rows["metrics"] == ("section of @metrics", "{}")
    rows = {name: (kind, default) for name, kind, default in describe(Part)}
    assert rows["double"] == ("int", "derived")
    assert rows["level"] == ('"low" or "high"', '"low"')
    assert rows["anything"] == ("any value", "null")
