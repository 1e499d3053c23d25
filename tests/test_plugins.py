"""Backends of other packages: found by entry point, loaded when asked for, and none of them spoils the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cp_agents.backends.registry import BackendOptions, kinds, resolve_backend
from cp_agents.errors import InputError, MissingExtraError
from tests.support import PETS

ROOT = Path(__file__).parent.parent
OPTIONS = BackendOptions(taxonomy=PETS)
BUILT_IN = set(kinds())

GOOD = """
from tests.support import ScriptedBackend

def make(rest, options):
    backend = ScriptedBackend(lambda i: rest)
    backend.options = options
    return backend

def picky(rest, options):
    from cp_agents.errors import InputError, MissingExtraError
    raise MissingExtraError("picky", "picky") if rest == "extra" else InputError("picky wants a colour")

def buggy(rest, options):
    return {}["no such key"]

def wrong(rest, options):
    return "a backend"

no_factory = 7
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install(package, code, kind="module:object", ...)` puts a package on Python's path as an installer does."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(package: str, code: str, **points: str) -> None:
        (tmp_path / f"{package}.py").write_text(code)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{kind} = {place}" for kind, place in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[cp_agents.backends]", *lines]))
        monkeypatch.delitem(sys.modules, package, raising=False)

    return write


async def test_a_plugin_gets_what_stands_after_the_colon_and_the_options(install: Install) -> None:
    install("plugged_good", GOOD, shades="plugged_good:make")
    backend = resolve_backend("shades:of grey:50", OPTIONS)
    assert backend.script(0) == "of grey:50"  # type: ignore[attr-defined]
    assert backend.options is OPTIONS  # type: ignore[attr-defined]
    assert set(kinds()) == BUILT_IN | {"shades"}


def test_listing_plugins_does_not_load_them(install: Install) -> None:
    install("plugged_bomb", "raise SystemExit('loaded')", bomb="plugged_bomb:make")
    assert "bomb" in kinds()
    assert "plugged_bomb" not in sys.modules


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("plugged_bad:make", r"package plugged_bad does not work \(ImportError: no parachute\)"),
        ("plugged_good:nobody", r"does not work \(AttributeError: .*nobody"),
        ("plugged_gone:make", r"does not work \(ModuleNotFoundError: .*plugged_gone"),
        ("plugged_good:no_factory", r"does not work \(TypeError"),
        ("plugged_good:buggy", r"does not work \(KeyError: 'no such key'"),
        ("plugged_good:wrong", "is no backend: .* found str"),
        ("plugged_good:picky", "^picky wants a colour$"),
    ],
)
def test_a_broken_plugin_says_one_sentence_and_spoils_nothing(
    install: Install, place: str, said: str
) -> None:
    install("plugged_good", GOOD, fine="plugged_good:make")
    install("plugged_bad", "raise ImportError('no\\n parachute')", broken=place)
    with pytest.raises(InputError, match=said) as error:
        resolve_backend("broken:x", OPTIONS)
    assert "\n" not in str(error.value)
    assert resolve_backend("fine", OPTIONS).identity.kind == "scripted"
    assert {"broken", "fine"} <= set(kinds())


def test_a_plugin_can_ask_for_an_extra_of_its_own(install: Install) -> None:
    install("plugged_good", GOOD, picky="plugged_good:picky")
    with pytest.raises(MissingExtraError):
        resolve_backend("picky:extra", OPTIONS)


def test_the_built_in_kinds_cannot_be_taken_over(install: Install) -> None:
    install("plugged_good", GOOD, openai="plugged_good:make", replay="plugged_good:make")
    assert set(kinds()) == BUILT_IN
    with pytest.raises(InputError, match="recording"):
        resolve_backend("replay", OPTIONS)


def test_two_packages_with_the_same_kind_are_named(install: Install) -> None:
    install("plugged_good", GOOD, twice="plugged_good:make")
    install("plugged_also", GOOD, twice="plugged_also:make")
    with pytest.raises(InputError, match="plugged_also and plugged_good"):
        resolve_backend("twice", OPTIONS)
    assert kinds().count("twice") == 1


@pytest.mark.parametrize(("value", "off"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_plugins_can_be_turned_off(
    install: Install, monkeypatch: pytest.MonkeyPatch, value: str, off: bool
) -> None:
    install("plugged_good", GOOD, shades="plugged_good:make")
    monkeypatch.setenv("CP_AGENTS_DISABLE_PLUGINS", value)
    assert ("shades" in kinds()) is not off
    if off:
        with pytest.raises(InputError, match="unknown backend 'shades:x': expected one of ensemble"):
            resolve_backend("shades:x", OPTIONS)


PROFILE_ONE = """
from cp_agents import InputError, Profiler
record = {"user_id": "u1", "watched": ["pram tests"], "self_reported": {"gender": "female", "age": 25}}
profiler = Profiler(backend="selfreport:4", samples=4)
profile = profiler.profile(record)
gender, age = profile["gender"], profile["age"]
assert (gender.tag, gender.survivors, gender.evidence[0].text) == ("Female", 4, "gender: female"), gender
assert age.tag == profiler.taxonomy["age"].match_value("25"), age
assert profile["industry"].voted == "NA"
try:
    Profiler(backend="selfreport:9")
except InputError as error:
    print(error)
"""


def test_the_example_package_installs_and_profiles(tmp_path: Path) -> None:
    """As in its README, but into a folder of its own and without an index."""
    source = shutil.copytree(ROOT / "cookbook" / "backend_plugin", tmp_path / "source")
    target = tmp_path / "site"
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)], check=True
    )
    profiled = subprocess.run(
        [sys.executable, "-c", PROFILE_ONE],
        env={**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert profiled.returncode == 0, profiled.stderr
    assert profiled.stdout == "selfreport takes a confidence of 1 to 5, as in selfreport:4, found '9'\n"
    module = (ROOT / "cookbook" / "backend_plugin" / "cp_agents_selfreport.py").read_text().splitlines()
    assert len(module) <= 50, "an example stays small"
