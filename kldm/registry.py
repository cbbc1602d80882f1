"""Shelves of named components over catalogue, one typed decorator for each interface.

    from kldm import process

    @process("my_process.v1")
    class MyProcess: ...

mypy reports a component that does not satisfy its interface at its class. Installed packages put
components on a shelf with an entry point in the group ``kldm_processes``, ``kldm_networks`` and so on.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import catalogue

from kldm.errors import KldmError, nearest
from kldm.interfaces import (
    Augmentation,
    Codec,
    DiffusionProcess,
    LearningRate,
    Metric,
    Potential,
    Sampler,
    Schedule,
    ScoreNetwork,
)

P = TypeVar("P", bound=Callable[..., DiffusionProcess])
N = TypeVar("N", bound=Callable[..., ScoreNetwork])
S = TypeVar("S", bound=Callable[..., Sampler])
M = TypeVar("M", bound=Callable[..., Metric])
C = TypeVar("C", bound=Callable[..., Codec])
H = TypeVar("H", bound=Callable[..., Schedule])
A = TypeVar("A", bound=Callable[..., Augmentation])
E = TypeVar("E", bound=Callable[..., Potential])
L = TypeVar("L", bound=Callable[..., LearningRate])
F = TypeVar("F", bound=Callable[..., Any])


class Shelf:
    """The components of one interface by versioned name.

    kldm's own components are registered when the shelf is first read.

    Args:
        kind: the shelf's name, as recipes write it: ``@processes``.
        interface: the Protocol that its components build.
        home: the module whose import registers kldm's own components.
    """

    def __init__(self, kind: str, interface: type, home: str) -> None:
        self.kind, self.interface, self.home = kind, interface, home
        self._registry: catalogue.Registry[Any] = catalogue.create("kldm", kind, entry_points=True)

    def put(self, name: str, component: F) -> F:
        """Register a component. A name can be taken only once, except by executing the same file again."""
        if component.__module__.partition(".")[0] != "kldm":
            import_module(self.home)  # so that it is another's component that is refused a name of kldm's own
        # Entry points are not consulted: the one that is importing this component would be imported again.
        old = catalogue.REGISTRY.get(("kldm", self.kind, name))
        if old is not None:
            self._refuse_another(name, old, component)
        self._registry.register(name, func=component)
        return component

    def get(self, name: str) -> Callable[..., Any]:
        """The component of that name; raises ``KldmError`` naming the nearest one."""
        if name not in self.names():
            remedy = nearest(name, self.names()) or f"it holds {', '.join(self.names()) or 'nothing'}"
            raise KldmError(f"@{self.kind} holds no {name!r}", remedy=remedy)
        component: Callable[..., Any] = self._registry.get(name)
        self._refuse_another(name, catalogue.REGISTRY.get(("kldm", self.kind, name), component), component)
        return component

    def names(self) -> tuple[str, ...]:
        import_module(self.home)
        return tuple(sorted(self._registry.get_all()))

    def _refuse_another(self, name: str, old: Callable[..., Any], new: Callable[..., Any]) -> None:
        if old is not new and (old.__module__, old.__qualname__) != (new.__module__, new.__qualname__):
            raise KldmError(
                f"@{self.kind} already holds {name!r} (from {old.__module__})",
                place=f"{new.__module__}.{new.__qualname__}",
                remedy="give yours another name or version",
            )


processes = Shelf("processes", DiffusionProcess, "kldm.processes")
networks = Shelf("networks", ScoreNetwork, "kldm.networks")
samplers = Shelf("samplers", Sampler, "kldm.samplers")
metrics = Shelf("metrics", Metric, "kldm.metrics")
codecs = Shelf("codecs", Codec, "kldm.processes")
schedules = Shelf("schedules", Schedule, "kldm.processes")
augmentations = Shelf("augmentations", Augmentation, "kldm.augmentations")
potentials = Shelf("potentials", Potential, "kldm.potentials")
learning_rates = Shelf("learning_rates", LearningRate, "kldm.training.learning_rates")

SHELVES = {
    shelf.kind: shelf
    for shelf in (
        processes,
        networks,
        samplers,
        metrics,
        codecs,
        schedules,
        augmentations,
        potentials,
        learning_rates,
    )
}


def process(name: str) -> Callable[[P], P]:
    """Register a ``DiffusionProcess``."""
    return lambda component: processes.put(name, component)


def network(name: str) -> Callable[[N], N]:
    """Register a ``ScoreNetwork``; its first, positional-only argument is the ``Interface``."""
    return lambda component: networks.put(name, component)


def sampler(name: str) -> Callable[[S], S]:
    """Register a ``Sampler``."""
    return lambda component: samplers.put(name, component)


def metric(name: str) -> Callable[[M], M]:
    """Register a ``Metric``."""
    return lambda component: metrics.put(name, component)


def codec(name: str) -> Callable[[C], C]:
    """Register a ``Codec``."""
    return lambda component: codecs.put(name, component)


def schedule(name: str) -> Callable[[H], H]:
    """Register a ``Schedule``."""
    return lambda component: schedules.put(name, component)


def augmentation(name: str) -> Callable[[A], A]:
    """Register an ``Augmentation``."""
    return lambda component: augmentations.put(name, component)


def potential(name: str) -> Callable[[E], E]:
    """Register a ``Potential``."""
    return lambda component: potentials.put(name, component)


def learning_rate(name: str) -> Callable[[L], L]:
    """Register a ``LearningRate``."""
    return lambda component: learning_rates.put(name, component)
