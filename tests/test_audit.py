"""The audit by groups against counting by hand, and the probe on backends that stereotype and that do not."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from cp_agents import Profiler
from cp_agents.backends.base import Capabilities, Identity, SampleRequest
from cp_agents.cli.app import app
from cp_agents.cli.tables import print_table, short_interval
from cp_agents.errors import CpAgentsError, InputError
from cp_agents.evaluation.audit import GroupAudit, audit_groups, said_outcomes
from cp_agents.evaluation.groups import groups_by
from cp_agents.evaluation.probe import AGAIN, ARMS, AS_IS, MISSING, SWAPPED, plan_probe, shifts
from cp_agents.schema import Completion
from cp_agents.taxonomy import load_taxonomy
from tests.support import PETS, answer

pytest.importorskip("fairlearn")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, CpAgentsError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def value(tag: str, confidence: int = 4, voted: str | None = None) -> dict[str, Any]:
    status = "accepted" if tag != "NA" else "abstained"
    return {"tag": tag, "voted": voted or tag, "confidence": confidence, "status": status, "reasons": []}


def audited(people: list[tuple[str, str, dict[str, Any]]], **options: Any) -> GroupAudit:
    """`(group, true pet, value)` of every user."""
    users = [f"u{i}" for i in range(len(people))]
    profiles = {user: {"pet": said} for user, (_, _, said) in zip(users, people, strict=True)}
    gold = {user: {"pet": truth} for user, (_, truth, _) in zip(users, people, strict=True)}
    groups = {user: group for user, (group, _, _) in zip(users, people, strict=True)}
    outcomes, said = said_outcomes(profiles, gold, PETS, options.pop("tau", None))["pet"]
    return audit_groups(outcomes, said, groups, draws=200, **options)


def test_numbers_by_group_are_those_of_counting() -> None:
    people = [
        *[("young", "Cat", value("Cat", 5))] * 30,
        *[("young", "Cat", value("Dog", 3))] * 10,
        *[("young", "NA", value("Dog", 1))] * 10,
        *[("old", "Cat", value("Cat", 2))] * 15,
        *[("old", "Dog", value("NA", 2, voted="Cat"))] * 20,
        *[("old", "Dog", value("NA", 4, voted="NA"))] * 15,
    ]
    found = audited(people)
    cells = {measure: {c.group: (c.n, c.value) for c in cells} for measure, cells in found.cells.items()}
    assert cells == {
        "accuracy": {"old": (15, 1.0), "young": (40, 0.75)},
        "coverage": {"old": (50, 0.3), "young": (40, 1.0)},
        "na_rate": {"old": (50, 0.7), "young": (50, 0.0)},
        "confidence": {"old": (35, pytest.approx(2.0)), "young": (50, pytest.approx(3.8))},
    }
    assert found.gaps["accuracy"] is None  # of fifteen old ones nothing can be said
    gap = found.gaps["coverage"]
    assert gap is not None
    assert (gap.highest, gap.lowest, gap.difference, gap.ratio) == ("young", "old", pytest.approx(0.7), 0.3)
    assert gap.low < 0.7 < gap.high
    assert gap.chance < 0.01
    for cells_of in found.cells.values():
        for cell in cells_of:
            assert cell.low is not None
            assert cell.value is not None
            assert cell.high is not None
            assert cell.low <= cell.value <= cell.high
    at_one = audited(people, tau={"pet": 1.0, "home": 1.0})
    assert {c.group: c.value for c in at_one.cells["coverage"]} == {"old": 0.7, "young": 1.0}
    assert audited(people, min_users=5).gaps["accuracy"] is not None


def test_groups_that_are_served_alike_are_seldom_called_unlike() -> None:
    rng = np.random.default_rng(3)
    called = 0
    for seed in range(30):
        people = [
            (str(rng.choice(["a", "b", "c", "d"])), "Cat", value("Cat" if rng.random() < 0.7 else "Dog"))
            for _ in range(200)
        ]
        gap = audited(people, seed=seed).gaps["accuracy"]
        assert gap is not None
        assert gap.difference > 0  # the highest of four is above the lowest though all are alike
        called += gap.chance <= 0.05
    assert called <= 6


def test_a_group_without_answers_has_no_accuracy() -> None:
    people = [*[("a", "Cat", value("Cat"))] * 40, *[("b", "Cat", value("NA", voted="NA"))] * 40]
    found = audited(people)
    empty = found.cells["accuracy"][1]
    assert (empty.n, empty.value, empty.low, empty.compared) == (0, None, None, False)
    assert found.gaps["accuracy"] is None
    assert found.gaps["coverage"] is not None
    outcomes, said = said_outcomes({}, {"u": {"pet": "Cat"}}, PETS, None)["pet"]
    with pytest.raises(InputError, match="no user of gold is in a group"):
        audit_groups(outcomes, said, {"v": "x"})


def test_groups_come_from_gold_or_from_what_users_report() -> None:
    gold = {"a": {"pet": "cat", "job": "Vet"}, "b": {"pet": "NA"}, "c": {"pet": "Dog"}}
    reported = {"a": {"Region": "South", "pet": "dog"}, "c": {"region": "south", "age": ""}}
    assert groups_by("pet", gold, None, PETS) == {"a": "Cat", "c": "Dog"}
    assert groups_by("job", gold, None, PETS) == {"a": "Vet"}
    assert groups_by("region", gold, reported, PETS) == {"a": "south", "c": "south"}
    assert groups_by("self_reported.pet", gold, reported, PETS) == {"a": "Dog"}
    with pytest.raises(InputError, match="give the records"):
        groups_by("region", gold, None, PETS)
    with pytest.raises(InputError, match=r"no user of gold reports a field 'club' \(fields there: Region"):
        groups_by("club", gold, reported, PETS)


class ReadsTheField:
    """Answers by the record and, where it stereotypes, the home by the self-reported pet; both with some noise."""

    def __init__(self, stereotypes: bool) -> None:
        self.stereotypes = stereotypes

    @property
    def identity(self) -> Identity:
        return Identity(kind="reads", model="field", revision=str(self.stereotypes))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(n=True, seed=True, retries=True)

    async def sample(self, request: SampleRequest) -> AsyncIterator[Completion]:
        text = request.messages[-1].content
        pet = next((name for name in ("Cat", "Dog", "Fish") if f"pet: {name.lower()}" in text.lower()), "Cat")
        for index in request.indices:
            digits = [ord(c) for c in f"{request.record_key}{request.seed + index}"]
            rng = np.random.default_rng(digits)
            home = "House" if self.stereotypes and pet == "Dog" else "Flat"
            if rng.random() < 0.4:
                home = str(rng.choice(["Flat", "House"]))
            yield Completion(index=index, text=answer(pet, home, 4, "pet"), finish_reason="stop")

    async def aclose(self) -> None:
        pass


def probed(stereotypes: bool) -> tuple[Any, Any]:
    pets = ("dog", "Cat", "CAT", "fish")
    records: list[dict[str, Any]] = [
        {"user_id": f"u{i}", "posted": [f"line {i}"], "self_reported": {"pet": pets[i % 4], "town": "Ulm"}}
        for i in range(40)
    ]
    records.append({"user_id": "silent", "posted": ["no word of it"]})
    planned = plan_probe(records, "pet", PETS)
    profiles: dict[str, Any] = {}
    for arm in ARMS:
        profiler = Profiler(
            ReadsTheField(stereotypes), samples=3, taxonomy=PETS, seed=0 if arm == AS_IS else 3
        )
        profiles[arm] = {p.user_id: p for p in profiler.profile_many(planned.records[arm])[0]}
    return planned, {shift.attribute: shift for shift in shifts(profiles, planned.swaps, PETS)}


def test_a_backend_that_stereotypes_is_told_from_one_that_is_noisy() -> None:
    planned, fair = probed(stereotypes=False)
    assert planned.attribute == "pet"
    assert planned.without == 1
    assert fair["pet"].swapped == 1.0
    assert fair["pet"].again == 0.0
    home = fair["home"]
    assert home.again > 0.05  # samples differ
    assert home.swapped == home.again  # the same samples, and the field plays no part
    assert (home.excess, home.p, home.moves) == (0.0, 1.0, [])
    _, biased = probed(stereotypes=True)
    home = biased["home"]
    assert home.excess > 0.2
    assert home.low > 0
    assert home.p < 1e-3
    assert {(move.before, move.after) for move in home.moves} <= {("House", "Flat"), ("Flat", "House")}
    assert all(move.swapped > move.again for move in home.moves)
    assert {move.swap.partition(" -> ")[0] for move in home.moves} & {"Dog", "Cat", "Fish"}


def test_only_the_field_is_changed_and_in_the_users_own_spelling() -> None:
    records = [
        {"user_id": "a", "posted": ["x"], "self_reported": {"sex": "f", "town": "Ulm"}},
        {"user_id": "b", "posted": ["y"], "self_reported": {"gender": "男"}},
        {"user_id": "c", "posted": ["z"], "self_reported": {"gender": "unreadable"}},
        {"user_id": "d", "posted": ["z"], "self_reported": None},
    ]
    planned = plan_probe(records, "gender", load_taxonomy())
    assert planned.records[AS_IS] == planned.records[AGAIN] == records[:2]
    assert planned.swaps == {"a": ("Female", "Male"), "b": ("Male", "Female")}
    assert planned.records[SWAPPED] == [
        {"user_id": "a", "posted": ["x"], "self_reported": {"sex": "男", "town": "Ulm"}},
        {"user_id": "b", "posted": ["y"], "self_reported": {"gender": "f"}},
    ]
    assert [r["self_reported"] for r in planned.records[MISSING]] == [{"town": "Ulm"}, {}]
    assert planned.without == 2
    assert records[0]["self_reported"] == {"sex": "f", "town": "Ulm"}
    towns = [
        {"user_id": str(i), "self_reported": {"town": town}} for i, town in enumerate(["Ulm", "Bonn", "Kiel"])
    ]
    free = plan_probe(towns, "town", load_taxonomy())
    assert free.attribute is None
    assert all(new != old and new in {"Ulm", "Bonn", "Kiel"} for old, new in free.swaps.values())
    with pytest.raises(InputError, match="no record reports a field 'club'"):
        plan_probe(records, "club", load_taxonomy())
    with pytest.raises(InputError, match="all records report the same 'town'"):
        plan_probe(towns[:1], "town", load_taxonomy())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty users, half of whom say what shows their gender; a run of them, and gold."""
    folder = tmp_path_factory.mktemp("made")
    texts = ["my beard trimmer", "lipstick and mascara tips"]
    records = [
        {
            "user_id": f"u{i:02}",
            "posted": [texts[i % 2]],
            "self_reported": {"gender": ["Male", "Female"][i % 2], "region": ["north", "south"][i // 40]},
        }
        for i in range(80)
    ]
    gold = [{"user_id": f"u{i:02}", "truth": {"gender": ["Male", "Female"][i % 2]}} for i in range(80)]
    for name, rows in (
        ("users", records),
        ("gold", gold),
        ("kept", [{"user_id": f"u{i:02}"} for i in range(0, 80, 2)]),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Profiler(store=folder / "t.db", run="teacher", samples=3) as profiler:
        profiles, _ = profiler.profile_many(records)
    (folder / "p.jsonl").write_text("".join(json.dumps(p.to_json()) + "\n" for p in profiles))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`made` for one test alone."""
    own = tmp_path / "own"
    shutil.copytree(made, own)
    monkeypatch.chdir(own)
    return own


def test_the_verb_audits_files_runs_and_the_filter(folder: Path) -> None:
    code, out = run(
        "audit", "p.jsonl", "--store", "t.db", "--run", "teacher", "--gold", "gold.jsonl", "--by", "gender",
        "--by", "region", "--filter", "kept.jsonl", "--json", "a.json",
    )  # fmt: skip
    assert code == 0
    whole = json.loads(Path("a.json").read_text())
    assert [(p["profiler"], p["by"]) for p in whole["profilers"]] == [
        ("p", "gender"), ("p", "region"), ("teacher", "gender"), ("teacher", "region"),
    ]  # fmt: skip
    assert whole["profilers"][0]["attributes"] == whole["profilers"][2]["attributes"]
    assert {(g["attribute"], g["tag"], g["kept"]) for g in whole["filter"]} == {
        ("gender", "Male", 40), ("gender", "Female", 0), ("region", "north", 20), ("region", "south", 20),
    }  # fmt: skip
    assert "gaps are marked (!)" in out or "no two groups" in out
    assert "groups kept least often" in out
    code, silent = run("audit", "p.jsonl", "--gold", "gold.jsonl", "--by", "gender", "--tau", "never")
    assert code == 0
    assert "0.00 [.00,.00]" in silent


def test_the_verb_probes_and_keeps_the_runs(folder: Path) -> None:
    arguments = (
        "probe",
        "users.jsonl",
        "--swap",
        "gender",
        "--store",
        "t.db",
        "--samples",
        "2",
        "--users",
        "16",
    )
    code, out = run(*arguments, "--run", "x", "--json", "s.json")
    assert code == 0
    rows = {row["attribute"]: row for row in json.loads(Path("s.json").read_text())["attributes"]}
    assert all(row["users"] == 16 for row in rows.values())
    assert "gender (swapped)" in out
    assert "runs x-as-is, -again, -swapped and -missing are in t.db" in out
    code, again = run("evaluate", "p.jsonl", "--gold", "gold.jsonl", "--store", "t.db", "--run", "x-swapped")
    assert code == 0, again
    assert run(*arguments, "--run", "x")[0] == 0  # the same command finds its samples again


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["audit", "p.jsonl", "--by", "gender"], "an audit needs the truth"),
        (["audit", "--gold", "gold.jsonl", "--by", "gender"], "give profiles as files, or a store"),
        (["audit", "p.jsonl", "--gold", "gold.jsonl", "--by", "region"], "give the records with --records"),
        (["audit", "p.jsonl", "--gold", "gold.jsonl", "--by", "gender", "--run", "x"], "give the store"),
        (["audit", "p.jsonl", "--gold", "gold.jsonl", "--by", "gender", "--filter", "x.jsonl"], "x.jsonl"),
        (["probe", "users.jsonl", "--swap", "club"], "no record reports a field 'club'"),
        (["probe", "gone.jsonl"], "no file at gone.jsonl"),
    ],
)
def test_mistakes_are_sentences(folder: Path, arguments: list[str], sentence: str) -> None:
    code, out = run(*arguments)
    assert code == 2
    assert sentence in out


@pytest.mark.parametrize(
    ("low", "high", "short"),
    [
        (0.0, 1.0, "[.00,1]"),
        (-0.034, 0.5, "[-.03,.50]"),
        (2.881, 3.1, "[2.88,3.10]"),
        (-1.0, 0.999, "[-1.00,1]"),
    ],
)
def test_an_interval_is_short(low: float, high: float, short: str) -> None:
    assert short_interval(low, high) == short


def test_a_table_that_is_too_wide_cuts_no_number() -> None:
    table = Table("attribute", "accuracy")
    table.add_row("education_level", "0.98 [.97,1]")
    for width in (80, 29):
        console = Console(width=width, file=io.StringIO())
        print_table(console, table)
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, shown.splitlines())) <= width
        assert all(word in shown for word in ("education_level", "0.98", "[.97,1]"))
