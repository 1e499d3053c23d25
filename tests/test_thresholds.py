"""Thresholds for a promised accuracy: the tests behind them, the walk, the verb, and whether the promise is kept."""

from __future__ import annotations

import json
import math
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cp_agents import Profiler
from cp_agents.abstention import NEVER, decide, parse_tau, tau_word
from cp_agents.cli.app import app, read_config
from cp_agents.cli.config_file import set_in_config
from cp_agents.errors import CpAgentsError, InputError
from cp_agents.evaluation.loading import load_gold
from cp_agents.evaluation.outcomes import Outcomes, by_user, read_outcomes
from cp_agents.evaluation.risk_control import (
    accuracy_interval,
    fewest_answers,
    long_run_p,
    most_wrong,
    next_p,
    promise_p,
    walk,
)
from cp_agents.evaluation.threshold_check import check_splits
from cp_agents.evaluation.thresholds import Promise, check_promise, choose, own_words
from cp_agents.files import read_records
from cp_agents.routing import AUDIT, ReviewPolicy
from cp_agents.schema import Status
from cp_agents.stores.reviews import answer_one, audited, open_reviews
from cp_agents.stores.traces import TraceStore
from tests.support import PETS

PET = PETS["pet"]
TARGETS = st.sampled_from([0.5, 0.7, 0.8, 0.9, 0.95])


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, CpAgentsError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def outcomes(confidence: Any, right: Any) -> Outcomes:
    """Users with these confidences, all of whom are cats; those that are not right are called dogs."""
    n = len(confidence)
    return Outcomes(
        PET,
        tuple(f"u{i}" for i in range(n)),
        np.zeros(n, np.int64),
        np.where(np.asarray(right, bool), 0, 1).astype(np.int64),
        np.asarray(confidence, float),
        np.ones(n, bool),
    )


def drawn(n: int, accuracies: list[float], rng: np.random.Generator) -> Outcomes:
    """Users whose vote at level i is right with the accuracy i."""
    level = rng.integers(1, 6, n)
    return outcomes(level, rng.random(n) < np.array(accuracies)[level - 1])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), TARGETS, st.data())
def test_the_p_values_are_those_of_scipy(n: int, coming: int, target: float, data: st.DataObject) -> None:
    stats = pytest.importorskip("scipy.stats")
    wrong = data.draw(st.integers(0, n))
    assert long_run_p(wrong, n, target) == pytest.approx(stats.binom.cdf(wrong, n, 1 - target), abs=1e-9)
    more = most_wrong(coming, target) + 1
    exact = stats.hypergeom.cdf(wrong, n + coming, wrong + more, n)
    assert next_p(wrong, n, coming, target) == pytest.approx(exact, abs=1e-9)
    low, high = accuracy_interval(n - wrong, n)
    ends = stats.binomtest(n - wrong, n).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((ends.low, ends.high), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 25), st.integers(1, 25), TARGETS, st.sampled_from([0.05, 0.1, 0.3]))
def test_whatever_the_pool_holds_few_splits_pass_and_then_break_the_promise(
    n: int, coming: int, target: float, delta: float
) -> None:
    passes = [promise_p(wrong, n, target, coming / n) <= delta for wrong in range(n + 1)]
    for bad in range(n + coming + 1):
        both = sum(
            math.comb(n, wrong) * math.comb(coming, bad - wrong)
            for wrong in range(max(0, bad - coming), min(n, bad) + 1)
            if passes[wrong] and bad - wrong > most_wrong(coming, target)
        )
        assert both / math.comb(n + coming, bad) <= delta + 1e-9


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), TARGETS, st.floats(0, 4))
def test_fewer_mistakes_never_hurt_and_a_next_batch_never_helps(n: int, target: float, ratio: float) -> None:
    p = [promise_p(wrong, n, target, ratio) for wrong in range(n + 1)]
    assert (np.diff(p) >= -1e-12).all()
    assert all(promise_p(wrong, n, target, 0) <= p[wrong] for wrong in range(n + 1))


def test_most_wrong_is_exact_at_the_edge() -> None:
    assert most_wrong(10, 0.9) == 1
    assert most_wrong(9, 0.9) == 0
    assert most_wrong(1000, 0.7) == 300


@pytest.mark.parametrize(("target", "delta"), [(0.9, 0.1), (0.8, 0.1), (0.95, 0.05), (0.7, 0.01)])
def test_the_fewest_answers_are_those_of_a_perfect_record(target: float, delta: float) -> None:
    least = fewest_answers(target, delta, 0)
    assert least == math.ceil(math.log(delta) / math.log(target))
    assert walk([(0, least)], target, delta, 0) == 0
    assert walk([(0, least - 1)], target, delta, 0) is None
    with_next = fewest_answers(target, delta, 1)
    assert with_next is not None
    assert with_next > least
    assert fewest_answers(target, delta, 0, accuracy=target) is None


def test_the_walk_stops_at_the_first_that_fails_and_leaves_out_what_cannot_pass() -> None:
    # too few answers at the strictest, safe, not safe, safe again: what lies beyond a failure is not looked at
    assert walk([(0, 3), (0, 100), (40, 200), (0, 900)], 0.9, 0.1, 0) == 1
    assert walk([(30, 100), (0, 900)], 0.9, 0.1, 0) is None
    assert walk([], 0.9, 0.1, 0) is None


@pytest.mark.parametrize("coming", [0, None])
def test_a_wrong_threshold_is_chosen_as_seldom_as_promised(coming: int | None) -> None:
    rng = np.random.default_rng(4)
    # in the long run: 0.97 at level 5, 0.895 from level 4 on: tau 4 would break the promise by a hair
    accuracies = [0.2, 0.4, 0.6, 0.82, 0.97]
    promise = Promise(0.9, 0.1, coming=coming)
    taus = [choose(drawn(400, accuracies, rng), promise).tau for _ in range(300)]
    broken = sum(tau <= 4 for tau in taus)
    assert broken <= 0.1 * 300 + 2 * math.sqrt(300 * 0.1 * 0.9)
    assert sum(tau == 5 for tau in taus) > 100  # and it is not kept by silence
    points = [choose(drawn(400, accuracies, rng), promise._replace(risk="point")).tau for _ in range(100)]
    assert sum(tau <= 4 for tau in points) > 25


def test_splits_count_both_readings() -> None:
    rng = np.random.default_rng(1)
    found = {"pet": drawn(1000, [0.3, 0.5, 0.7, 0.9, 0.98], rng), "home": drawn(1000, [0.2] * 5, rng)}
    checks = check_splits(found, Promise(0.9), splits=60)
    pet, home = checks["pet"], checks["home"]
    assert pet.answered > 40
    assert pet.broken <= 60 * 0.1 + 5
    assert pet.accuracy is not None
    assert pet.accuracy > 0.9
    assert 0 < pet.coverage < 1
    assert pet.kept == 1 - pet.broken / 60
    assert pet.kept_interval[0] <= pet.kept <= pet.kept_interval[1]
    assert (home.answered, home.broken, home.broken_all, home.coverage, home.accuracy) == (0, 0, 0, 0.0, None)
    assert checks == check_splits(found, Promise(0.9), splits=60)


def test_fifty_labels_may_do_and_a_sentence_says_when_they_do_not() -> None:
    level = np.array([1, 2, 3, 4, 5] * 10)
    perfect = choose(outcomes(level, np.ones(50)), Promise(0.9))
    assert perfect.guaranteed
    assert (perfect.tau, perfect.accuracy, perfect.coverage, perfect.verdict) == (1, 1.0, 1.0, "promised")
    few = choose(outcomes(level[:20], np.ones(20)), Promise(0.9))
    assert few.tau == NEVER
    assert not few.guaranteed
    assert few.verdict == "too few: 20 answers at tau 1, and even without a mistake it takes 30"
    assert choose(outcomes(level[:20], np.ones(20)), Promise(0.9, coming=0)).verdict.endswith("it takes 22")
    bad = choose(outcomes(level, level == 5), Promise(0.9, coming=0))
    assert bad.tau == NEVER
    # all ten at level 5 are right, which is too few; at level 4 half are wrong
    assert bad.verdict == (
        "not sure yet: 1.00 at tau 5 (10 answers); at this accuracy about 12 more answers (60 labels) would do"
    )
    hopeless = choose(outcomes(level, np.arange(50) % 2), Promise(0.9))
    assert hopeless.verdict.startswith("no tau reaches it; the best is 0.")
    silent = outcomes(level, np.ones(50))._replace(voted=np.full(50, 3))
    assert choose(silent, Promise(0.9)).verdict == "nothing is answered where the truth is known"


def test_point_takes_the_smallest_tau_that_reached_the_target() -> None:
    found = choose(outcomes([1, 2, 3, 4, 5] * 4, [0, 1, 1, 1, 1] * 4), Promise(0.9, risk="point"))
    assert (found.tau, found.guaranteed, found.verdict) == (2, False, "no promise")
    assert [(level.tau, level.answered, level.right) for level in found.levels] == [
        (1, 20, 16), (2, 16, 16), (3, 12, 12), (4, 8, 8), (5, 4, 4),
    ]  # fmt: skip


def test_what_a_person_answered_is_not_what_the_model_knew() -> None:
    said = {
        "tag": "Dog",
        "voted": "Cat",
        "confidence": 2,
        "status": "reviewed",
        "reasons": ["low_confidence"],
    }
    failed = said | {"voted": "NA", "reasons": ["too_few_survivors", "audit"]}
    words = own_words(
        {"a": {"pet": said}, "b": {"pet": failed}, "c": {"pet": {"tag": "Cat", "confidence": 3}}}
    )
    found = read_outcomes(words, {user: {"pet": "Dog"} for user in "abc"}, PETS)["pet"]
    assert found.voted.tolist() == [0, 3, 0]
    assert found.reach.tolist() == [2, 0, 3]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((1.0, 0.1, "conformal", None), "the target accuracy should be above 0 and below 1, found 1"),
        ((0.9, 0.0, "conformal", None), "delta should be above 0 and below 1, found 0"),
        ((0.9, 0.1, "brave", None), "unknown risk 'brave': expected conformal or point"),
        ((0.9, 0.1, "point", -1), "the number of next users should be 0 or more, found -1"),
    ],
)
def test_a_promise_that_cannot_be(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_promise(*arguments)


def test_never_is_a_threshold_that_nothing_reaches() -> None:
    tau = parse_tau(["2", "pet=never", "home=5"], PETS)
    assert tau == {"pet": NEVER, "home": 5}
    assert [tau_word(value) for value in tau.values()] == ["never", "5"]
    assert decide("Cat", 5, tau=NEVER, survivors=10, samples=10).reasons == ["below_tau"]
    assert parse_tau(["never", "home=3"], PETS) == {"pet": NEVER, "home": 3}
    with pytest.raises(InputError, match="between 1 and 5"):
        parse_tau(["pet=6"], PETS)


CONFIG = """\
# mine
samples = 5  # M

[profile]  # a note
backend = "lexicon"
tau = [
  "2",  # of all
  "pet=3",
]
seed = 4

[[other]]
"""


def test_the_configuration_keeps_all_else(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    set_in_config(path, ["profile", "replay"], "tau", ["pet=4", "home=never"])
    assert path.read_text().startswith('[profile]\ntau = ["pet=4", "home=never"]\n\n[replay]\n')
    assert read_config(path)["profile"]["tau"] == ["pet=4", "home=never"]
    path.write_text(CONFIG)
    set_in_config(path, ["profile"], "tau", ["pet=5"])
    old = '[\n  "2",  # of all\n  "pet=3",\n]'
    assert path.read_text() == CONFIG.replace(f"tau = {old}", 'tau = ["pet=5"]')
    set_in_config(path, ["replay"], "tau", ["pet=5"])
    assert tomllib.loads(path.read_text())["replay"] == {"tau": ["pet=5"]}
    path.write_text("[profile]\nseed = 1")
    set_in_config(path, ["profile"], "tau", ["3"])
    assert tomllib.loads(path.read_text()) == {"profile": {"seed": 1, "tau": ["3"]}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("profile = {seed = 1}\n", "cannot be edited: put tau"),
        ("profile.seed = 1\n", "cannot be edited"),
        ("[profile\n", "not TOML"),
        ("profile = 3\n", "should be a table"),
    ],
)
def test_a_configuration_that_cannot_be_edited_is_left_alone(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        set_in_config(path, ["profile"], "tau", ["3"])
    assert path.read_text() == text


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A run of 120 users of whom three in ten are audited, and their gender."""
    folder = tmp_path_factory.mktemp("people")
    texts = [("my beard trimmer", "Male"), ("lipstick and mascara tips", "Female")]
    records = [{"user_id": f"u{i:03}", "posted": [texts[i % 2][0]]} for i in range(120)]
    truth = {f"u{i:03}": texts[i % 2][1] for i in range(120)}
    review = ReviewPolicy(audit_share=0.3, contradiction=True, low_confidence=1)
    with Profiler(store=folder / "t.db", run="r", samples=5, review=review) as profiler:
        profiles, _ = profiler.profile_many(records)
        (folder / "p.jsonl").write_text("".join(json.dumps(p.to_json()) + "\n" for p in profiles))
    gold = [{"user_id": user, "truth": {"gender": tag}} for user, tag in truth.items()]
    (folder / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    return folder, truth


def test_the_verb_shows_what_it_promises_and_writes_the_configuration(
    people: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = people
    monkeypatch.chdir(tmp_path)
    gold = str(folder / "gold.jsonl")
    code, out = run(
        "thresholds", str(folder / "p.jsonl"), "--gold", gold, "--splits", "20", "--json", "t.json"
    )
    assert code == 0
    assert "with probability 0.9 over which users were labelled, at least 90%" in out
    assert "among the next 120 users" in out
    assert "A tau needs 30 answers" in out
    whole = json.loads(Path("t.json").read_text())
    gender = whole["attributes"]["gender"]
    assert gender["labelled"] == 120
    assert gender["guaranteed"] == (gender["tau"] <= 5)
    assert whole["splits"]["gender"]["splits"] == 20
    config = read_config(Path("cp-agents.toml"))
    assert config["profile"]["tau"] == config["replay"]["tau"] == whole["tau"]
    code, _ = run("replay", "--store", str(folder / "t.db"), "--run", "r", "--out", "again.jsonl")
    assert code == 0
    lines = [json.loads(line)["profile"]["gender"] for line in Path("again.jsonl").read_text().splitlines()]
    assert sum(line["tag"] != "NA" for line in lines) == gender["answered"]
    before = Path("cp-agents.toml").read_text()
    code, out = run("thresholds", str(folder / "p.jsonl"), "--gold", gold, "--risk", "point", "--dry-run")
    assert code == 0
    assert "Nothing is promised" in out
    assert "nothing written; by hand: --tau gender=" in out
    assert Path("cp-agents.toml").read_text() == before
    code, out = run("thresholds", "--store", str(folder / "t.db"), "--gold", gold, "--next", "0", "--dry-run")
    assert "in the long run." in " ".join(out.split())


def test_only_the_random_audit_measures(
    people: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, truth = people
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "t.db"
    store.write_bytes((folder / "t.db").read_bytes())
    code, out = run("thresholds", "--store", str(store), "--from-reviews")
    assert code == 2
    assert "has no answered review of a random audit: profile with --review audit_share=" in out
    with TraceStore(store) as traces:
        rows = [row for row in open_reviews(traces) if row["attribute"] == "gender"]
        drawn_users = {row["user_id"] for row in rows if AUDIT in row["reasons"]}
        for row in rows:
            answer_one(traces, row["review_id"], truth[row["user_id"]], "ann")
        found = audited(traces, "r")
    assert 0 < len(drawn_users) < 120
    assert found.truth == {user: {"gender": truth[user]} for user in drawn_users}
    assert found.by_rule == len(rows) - len(drawn_users)
    assert found.asked == 6 * len(drawn_users)
    code, out = run("thresholds", "--store", str(store), "--from-reviews", "--target-accuracy", "0.6")
    said = " ".join(out.split())
    assert code == 0
    assert (
        f"truth: {len(drawn_users)} answers on {len(drawn_users)} users that the audit drew at random" in said
    )
    assert (
        f"{5 * len(drawn_users)} of the audit's {6 * len(drawn_users)} attributes are not answered yet"
        in said
    )
    with TraceStore(store) as traces:
        reviewed = [p for _, p in traces.profiles("r") if p["gender"].status is Status.REVIEWED]
    right = sum(p["gender"].voted == truth[p.user_id] for p in reviewed if p.user_id in drawn_users)
    table = next(line for line in out.splitlines() if "gender (" in line)
    assert f"gender ({len(drawn_users)})" in table
    assert right < len(drawn_users) or "1.000" in table


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["p.jsonl"], "truth comes from --gold FILE or from --from-reviews"),
        (["p.jsonl", "--from-reviews"], "--from-reviews reads what people answered from a store"),
        (["--gold", "gold.jsonl"], "give profiles as a file, or a store"),
        (["p.jsonl", "--gold", "others.jsonl"], "no user has both a profile and a known truth"),
        (["p.jsonl", "--gold", "gold.jsonl", "--config", "p.jsonl"], "cannot write p.jsonl"),
    ],
)
def test_mistakes_are_sentences(
    people: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(people[0])
    Path("others.jsonl").write_text('{"user_id": "x", "truth": {"gender": "Male"}}\n')
    code, out = run("thresholds", *arguments)
    assert code == 2
    assert sentence in out
    assert not Path("cp-agents.toml").exists()


def test_a_calibrator_that_saw_labels_is_named(people: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (people[0] / "p.jsonl").read_text().splitlines()]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line | {"calibrator": "isotonic:abc"}) + "\n" for line in lines))
    code, out = run("thresholds", str(path), "--gold", str(people[0] / "gold.jsonl"), "--dry-run")
    assert code == 0
    assert "calibrated on labels (isotonic)" in out


def test_on_published_data_the_promise_is_kept_on_users_that_were_not_used(shared_data: Path) -> None:
    records: list[Any] = list(read_records(shared_data / "atus" / "users.jsonl"))[:160]
    profiles, _ = Profiler(samples=10).profile_many(records)
    gold = load_gold(shared_data / "atus" / "gold.jsonl")
    known = {record["user_id"]: gold[record["user_id"]] for record in records}
    found = read_outcomes(own_words(by_user(p.to_json() for p in profiles)), known, Profiler().taxonomy)
    checks = check_splits(found, Promise(0.7), splits=50)
    assert {name for name, check in checks.items() if check.answered > 25} >= {"gender", "age"}
    for check in checks.values():
        assert check.kept >= 0.9


def test_profiles_of_a_store_are_judged_by_the_run_s_own_taxonomy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    records = [{"user_id": f"u{i}", "posted": [f"I walk my dog, line {i}"]} for i in range(6)]
    with Profiler(store="t.db", run="r", samples=3, taxonomy=PETS) as profiler:
        profiles, _ = profiler.profile_many(records)
    Path("p.jsonl").write_text("".join(json.dumps(p.to_json()) + "\n" for p in profiles))
    Path("gold.jsonl").write_text(
        "".join(f'{{"user_id": "u{i}", "truth": {{"pet": "Dog"}}}}\n' for i in range(6))
    )
    code, out = run("thresholds", "--store", "t.db", "--gold", "gold.jsonl", "--dry-run")
    assert code == 0
    assert "pet (6)" in out
    code, out = run("thresholds", "p.jsonl", "--gold", "gold.jsonl", "--dry-run")
    assert (code, out) == (2, "the truth speaks of no attribute of the taxonomy: nothing can be chosen")
    if find_spec("fairlearn"):
        assert run("audit", "--store", "t.db", "--gold", "gold.jsonl", "--by", "pet")[0] == 0
        code, out = run("audit", "p.jsonl", "--gold", "gold.jsonl", "--by", "pet")
        assert (code, "speaks of no attribute of the taxonomy profilebench" in out) == (2, True)


def test_a_verdict_speaks_of_the_tau_that_the_walk_came_to() -> None:
    # 40 answers at tau 5 with two mistakes end the walk; that 200 at tau 1 have no other counts for nothing
    level = np.repeat([5.0, 1.0], [40, 160])
    right = np.ones(200)
    right[:2] = 0
    found = choose(outcomes(level, right), Promise(0.9))
    assert found.tau == NEVER
    assert found.verdict.startswith("not sure yet: 0.95 at tau 5 (40 answers)")
    right[:6] = 0
    found = choose(outcomes(level, right), Promise(0.9))
    assert found.verdict == (
        "not sure yet: 0.85 at tau 5 (40 answers), and looser ones are tried only after it: 0.97 at tau 1 (200 answers)"
    )


def test_nobody_is_told_to_get_more_labels_than_there_are_people() -> None:
    right = np.ones(1000)
    right[:99] = 0
    found = choose(outcomes(np.full(1000, 5.0), right), Promise(0.9))
    assert found.verdict.endswith("so close to the target that it would take more than 10,000 labels")
