"""Hybrid supervision: tag weights from a few labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cp_agents import Profiler
from cp_agents.bench.hybrid import hybrid_rows
from cp_agents.cli.app import app
from cp_agents.errors import InputError
from cp_agents.hybrid import learn_from_run
from cp_agents.relabel import replay
from cp_agents.stores.traces import TraceStore
from cp_agents.tag_weights import fit_tag_weights, learn_tag_weights, reweigh, tag_scores
from cp_agents.taxonomy import Taxonomy

COLOURS = Taxonomy.model_validate(
    {"name": "colours", "attributes": [{"name": "colour", "tags": ["Red", "Green", "Blue"]}]}
)
USERS = 120


def biased_traces(path: Path) -> dict[str, dict[str, str]]:
    """A teacher that says Red too easily: half of its answers are Red whatever the truth."""
    rng, names, gold = np.random.default_rng(0), ("Red", "Green", "Blue"), {}
    with path.open("w") as file:
        for i in range(USERS):
            truth = names[i % 3]
            tags = [truth if rng.random() < 0.45 else "Red" for _ in range(10)]
            samples = [
                {"text": f"<colour><tag>{tag}</tag><score>4</score><evidence>hello</evidence></colour>"}
                for tag in tags
            ]
            file.write(json.dumps({"user_id": f"u{i}", "samples": samples}) + "\n")
            gold[f"u{i}"] = {"colour": truth}
    return gold


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, dict[str, dict[str, str]]]:
    gold = biased_traces(tmp_path / "traces.jsonl")
    store = tmp_path / "t.db"
    profiler = Profiler(f"replay:{tmp_path / 'traces.jsonl'}", store, taxonomy=COLOURS, run="teacher")
    with profiler.store:
        profiler.profile_many([{"user_id": user, "posted": ["hello"]} for user in gold])
    (tmp_path / "gold.jsonl").write_text(
        "".join(json.dumps({"user_id": u, "truth": t}) + "\n" for u, t in gold.items())
    )
    return store, gold


def right(store: TraceStore, gold: dict[str, dict[str, str]], **options: object) -> float:
    profiles = list(replay(store, "teacher", **options))  # type: ignore[arg-type]
    return float(np.mean([p["colour"].tag == gold[p.user_id]["colour"] for p in profiles]))


def test_labels_cure_a_teacher_that_says_one_tag_too_easily(
    run: tuple[Path, dict[str, dict[str, str]]],
) -> None:
    path, gold = run
    some = {user: gold[user] for user in list(gold)[:30]}
    with TraceStore(path) as store:
        learned = learn_from_run(store, gold=some)
        assert learned.labels == {"colour": 30}
        weights = learned.weights["colour"]
        assert weights["Red"] < 0.7 < weights["Green"]
        free, weighed = right(store, gold), right(store, gold, tag_weights=learned.weights)
        assert weighed > free + 0.1
        assert right(store, gold, tag_weights={}) == free
        rows = hybrid_rows(store, None, gold, ks=(0, 30), draws=10)
    assert rows[0].gain == (0.0, 0.0, 0.0)
    assert rows[1].gain.low > 0.05


def test_the_graph_votes_by_them_as_replay_does(
    run: tuple[Path, dict[str, dict[str, str]]], tmp_path: Path
) -> None:
    path, gold = run
    weights = {"colour": {"Red": 0.3}}
    with TraceStore(path) as store:
        replayed = {
            p.user_id: p["colour"] for p in replay(store, "teacher", tag_weights=weights, calibrator=None)
        }
        profiler = Profiler(
            f"replay:{tmp_path / 'traces.jsonl'}", store, taxonomy=COLOURS, run="again", tag_weights=weights
        )
        for user in list(gold)[:20]:
            profile = profiler.profile({"user_id": user, "posted": ["hello"]})
            assert (profile["colour"].tag, profile["colour"].score) == (
                replayed[user].tag,
                replayed[user].score,
            )


def test_the_verbs_go_together(run: tuple[Path, dict[str, dict[str, str]]], tmp_path: Path) -> None:
    path, gold = run
    cli = CliRunner()
    base = ["--store", str(path), "--run", "teacher"]
    weights, out, gold_file = (str(tmp_path / name) for name in ("w.json", "p.jsonl", "gold.jsonl"))
    said = cli.invoke(app, ["calibrate", "tags", *base, "--gold", gold_file, "--out", weights])
    assert said.exit_code == 0, said.output
    assert "colour: 120 labels; Red weighs" in said.output
    assert cli.invoke(app, ["replay", *base, "--tag-weights", weights, "--out", out]).exit_code == 0
    lines = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert np.mean([row["profile"]["colour"]["tag"] == gold[row["user_id"]]["colour"] for row in lines]) > 0.8
    table = cli.invoke(
        app, ["bench", "hybrid", *base, "--gold", gold_file, "--k", "0", "--k", "20", "--draws", "5"]
    )
    assert table.exit_code == 0, table.output
    assert "macro f1" in table.output
    too_many = cli.invoke(app, ["bench", "hybrid", *base, "--gold", gold_file, "--k", "100"])
    assert isinstance(too_many.exception, InputError)
    assert "ask for fewer" in str(too_many.exception)


def test_k_labels_are_counted_on_what_a_profile_would_answer(tmp_path: Path) -> None:
    """Half of the users have one usable sample of three, too few for a vote; gold has both of the truth's fields."""
    with (tmp_path / "traces.jsonl").open("w") as traces, (tmp_path / "gold.jsonl").open("w") as gold:
        for i in range(20):
            texts = ["<colour><tag>Red</tag><score>4</score><evidence>hello</evidence></colour>"] * (
                1 + 2 * (i % 2)
            )
            samples = [{"text": text} for text in [*texts, *["no answer"] * (3 - len(texts))]]
            traces.write(json.dumps({"user_id": f"u{i}", "samples": samples}) + "\n")
            row = {"user_id": f"u{i}", "truth": {"colour": "Green"}, "inferable": {"colour": "Red"}}
            gold.write(json.dumps(row) + "\n")
    replayed = f"replay:{tmp_path / 'traces.jsonl'}"
    with Profiler(replayed, tmp_path / "t.db", taxonomy=COLOURS, samples=3, run="r") as profiler:
        profiler.profile_many({"user_id": f"u{i}", "posted": ["hello"]} for i in range(20))
    base = ["bench", "hybrid", "--store", str(tmp_path / "t.db"), "--gold", str(tmp_path / "gold.jsonl")]
    out = tmp_path / "h.json"
    found = CliRunner().invoke(app, [*base, "--draws", "3", "--json", str(out)])
    assert found.exit_code == 0, found.output
    assert "k = 25, 50, 100, 200 would not leave half" in found.output
    none, *_ = json.loads(out.read_text())
    assert none["numbers"]["coverage"][0] == pytest.approx(0.5, abs=0.25)  # of the ten who are tested on
    assert none["numbers"]["selective_accuracy"][0] == 1.0  # by `inferable`
    silent = tmp_path / "silent.jsonl"
    silent.write_text("".join(f'{{"user_id": "u{i}", "truth": {{"colour": "NA"}}}}\n' for i in range(20)))
    refused = CliRunner().invoke(app, [*base[:-1], str(silent)])
    assert "gold names no tag of taxonomy" in str(refused.exception)


def test_what_cannot_be_is_said(run: tuple[Path, dict[str, dict[str, str]]], tmp_path: Path) -> None:
    path, _ = run
    with TraceStore(path) as store:
        with pytest.raises(InputError, match="no meaning in a vote by majority"):
            list(replay(store, "teacher", vote="majority", tag_weights={"colour": {"Red": 2.0}}))
        with pytest.raises(InputError, match="'Pink' is no tag"):
            list(replay(store, "teacher", tag_weights={"colour": {"Pink": 2.0}}))
        with pytest.raises(InputError, match="above 0"):
            list(replay(store, "teacher", tag_weights={"colour": {"Red": 0.0}}))
        with pytest.raises(InputError, match="names no tag"):
            learn_from_run(store, gold={"u0": {"colour": "NA"}})
        with pytest.raises(InputError, match="the reviews of run"):
            learn_from_run(store)
    (tmp_path / "w.json").write_text('{"format": "other"}')
    said = CliRunner().invoke(
        app,
        [
            "replay",
            "--store",
            str(path),
            "--out",
            str(tmp_path / "x"),
            "--tag-weights",
            str(tmp_path / "w.json"),
        ],
    )
    assert "no file of tag weights" in str(said.exception)


@given(st.integers(0, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_weights_are_the_top_of_a_concave_hill(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 50, (n, 4)).astype(float), rng.integers(0, 4, n)

    def height(log_weight: np.ndarray) -> float:
        kept = scores[np.arange(n), truth] > 0
        weighed = scores[kept] * np.exp(log_weight)
        p = weighed[np.arange(kept.sum()), truth[kept]] / weighed.sum(axis=1)
        return float(np.log(p).sum() - 1.5 * (log_weight**2).sum())

    found = np.log(fit_tag_weights(scores, truth))
    assert abs(found.sum()) < 1e-6
    for _ in range(10):
        assert height(found) >= height(found + rng.normal(0, 0.05, 4)) - 1e-9


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_reweighing_multiplies_the_sums(records: int, samples: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tags = rng.integers(-1, 4, (1, records, samples))
    confidence = np.where(tags >= 0, rng.integers(1, 6, tags.shape), 0)
    weights = {"colour": {"Red": 0.5, "Green": 2.0}}
    before = tag_scores(tags[0], confidence[0], 4)
    after = tag_scores(tags[0], reweigh(tags, confidence, COLOURS, weights)[0], 4)
    np.testing.assert_allclose(after, before * np.array([0.25, 1.0, 0.5, 0.5]))
    assert (reweigh(tags, confidence, COLOURS, weights)[tags >= 0] > 0).all()
    assert learn_tag_weights(tags, confidence, np.full((1, records), -1), COLOURS) == {}
