"""The command line as a person meets it: real processes for start-up, the real application for the rest."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database
from typer.testing import CliRunner

import cp_agents.cli
from cp_agents.cli.app import app, read_config
from cp_agents.errors import CpAgentsError, InputError
from cp_agents.stores.traces import TraceStore
from tests.loopback import LoopbackConfig, running_server

RECORDS = [
    {
        "user_id": f"u{i}",
        "watched": [["newborn sleep schedule", 30], "baby stroller review"],
        "searched": ["daycare costs"],
    }
    for i in range(4)
]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def users(tmp_path: Path) -> str:
    path = tmp_path / "users.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    return str(path)


class Said:
    """What a command printed and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def run(*arguments: str) -> Said:
    """The command line without a process of its own; `main` turns errors into a sentence and an exit code."""
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, CpAgentsError):
        return Said(result.exception.exit_code, result.stdout, f"error: {result.exception}\n")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


def lines(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def verbs(command: Any, *path: str) -> list[tuple[str, ...]]:
    found = []
    for name, sub in command.commands.items():
        found += verbs(sub, *path, name) if hasattr(sub, "commands") else [(*path, name)]
    return found


def all_verbs() -> list[tuple[str, ...]]:
    import typer

    return verbs(typer.main.get_command(app))


@pytest.mark.parametrize("verb", all_verbs(), ids=" ".join)
def test_every_verb_has_help_and_names_its_equal_in_python(verb: tuple[str, ...]) -> None:
    said = run(*verb, "--help")
    assert said.code == 0
    assert "Python:" in " ".join(said.out.split())


HEAVY = ("langgraph", "openai", "numpy", "pydantic", "torch")


def loaded_by(module: str) -> str:
    """Which of the heavy packages importing a module brings in."""
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    assert loaded_by("cp_agents.cli.app") == "[]"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(3):
        subprocess.run([sys.executable, "-m", "cp_agents", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, because the wall clock also measures what else the machine is doing.
    assert (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 3 < 0.3


def test_import_is_cheap() -> None:
    assert loaded_by("cp_agents") == "[]"


def test_profile_then_resume_then_replay_then_stats_then_forget(users: str) -> None:
    said = run("profile", users, "--out", "p.jsonl", "--samples", "5")
    assert said.code == 0, said.err
    assert "4 of 4 records profiled" in said.out
    profiles = lines("p.jsonl")
    assert [p["user_id"] for p in profiles] == ["u0", "u1", "u2", "u3"]
    for profile in profiles:
        assert set(profile) == {"user_id", "profile", "calibrator", "run_id"}
        for value in profile["profile"].values():
            assert {"tag", "confidence", "score", "vote_share", "status", "evidence"} <= set(value)
            for evidence in value["evidence"]:
                assert {"text", "match"} <= set(evidence)
    before = Path("p.jsonl").read_text()
    said = run("profile", users, "--out", "p.jsonl", "--samples", "5")
    assert "4 of them from before" in said.out
    assert "none drawn" in said.out
    assert Path("p.jsonl").read_text() == before

    said = run("replay", "--out", "r.jsonl", "--vote", "majority", "--tau", "4", "--tau", "gender=1")
    assert said.code == 0
    assert "4 records of run" in said.out
    said = run("replay", "--out", "same.jsonl")
    assert lines("same.jsonl") == profiles

    said = run("stats")
    assert "lexicon" in said.out
    assert "predictions" in said.out
    said = run("forget", "u2", "--export", "p.jsonl")
    assert "forgot u2: 1 records, 5 samples, 1 export lines" in said.out
    assert [p["user_id"] for p in lines("p.jsonl")] == ["u0", "u1", "u3"]
    assert b"u2" not in Path("traces.db").read_bytes().replace(b"u2 ", b"")


def test_plan_makes_no_call_and_shows_the_prompt(users: str) -> None:
    said = run("plan", users, "--price-prompt", "1", "--price-completion", "2")
    assert said.code == 0
    assert "newborn sleep schedule (30)" in said.out
    assert "<record>" in said.out
    assert "4 records x 10 samples" in said.out
    assert "cost: about $" in said.out
    assert not Path("traces.db").exists()


def test_demo(tmp_path: Path) -> None:
    said = run("demo", "--folder", "d")
    assert said.code == 0, said.err
    assert "gender" in said.out
    assert "NA" in said.out
    assert len(lines("d/profiles.jsonl")) == 12
    assert "<html" in Path("d/report.html").read_text()
    assert Path("d/traces.db").exists()


def test_evaluate_writes_all_numbers(users: str) -> None:
    run("profile", users, "--out", "p.jsonl", "--samples", "3")
    gold = [
        {"user_id": f"u{i}", "truth": {"life_stage": "Parenting (Child 0-2)", "gender": "Female"}}
        for i in range(4)
    ]
    Path("gold.jsonl").write_text("".join(json.dumps(g) + "\n" for g in gold))
    said = run("evaluate", "p.jsonl", "--gold", "gold.jsonl", "--json", "e.json")
    assert said.code == 0, said.err
    assert "macro_f1 at tau 1" in said.out
    found = json.loads(Path("e.json").read_text())
    assert found["attributes"]["life_stage"]["n_labelled"] == 4
    assert len(found["attributes"]["life_stage"]["at_tau"]) == 5


def test_calibrate_fit_show_and_use(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    many = [
        {**RECORDS[0], "user_id": f"m{i}", "posted": [f"note {i}", "my husband" if i % 2 else "my wife"]}
        for i in range(30)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in many))
    assert run("profile", str(path), "--out", "p.jsonl", "--samples", "5").code == 0
    said = run("calibrate", "fit", "--out", "c.json")
    assert said.code == 0, said.err
    assert "calibrator quintile:" in said.out
    assert "thresholds" in run("calibrate", "show", "c.json").out
    assert run("replay", "--out", "r.jsonl", "--calibrator", "c.json").code == 0
    assert lines("r.jsonl") == lines("p.jsonl")
    said = run(
        "profile",
        str(path),
        "--out",
        "p2.jsonl",
        "--samples",
        "5",
        "--vote",
        "majority",
        "--calibrator",
        "c.json",
    )
    assert said.code == 2
    assert "fitted on weighted votes" in said.err


def test_review_list_and_answer(users: str) -> None:
    assert run("profile", users, "--out", "p.jsonl", "--samples", "3", "--review", "audit_share=1").code == 0
    said = run("review", "list")
    assert "audit" in said.out
    said = run("review", "answer", "1", "female", "--reviewer", "ann", "--note", "known")
    assert said.code == 0, said.err
    with TraceStore("traces.db") as store:
        assert store.rows("select tag, reviewer, note from reviews where review_id = 1") == [
            ("Female", "ann", "known")
        ]
    assert run("review", "answer", "1", "Horse").code == 2


def test_config_file_gives_defaults_and_flags_win(users: str) -> None:
    Path("cp-agents.toml").write_text('samples = 3\nstore = "mine.db"\n[profile]\nrun = "from-config"\n')
    assert run("profile", users, "--out", "p.jsonl").code == 0
    with TraceStore("mine.db") as store:
        assert store.run()["run_id"] == "from-config"
        assert store.run()["samples"] == 3
    assert run("profile", users, "--out", "p.jsonl", "--samples", "2", "--run", "flag").code == 0
    with TraceStore("mine.db") as store:
        assert (store.run()["run_id"], store.run()["samples"]) == ("flag", 2)
    Path("cp-agents.toml").write_text("smaples = 3\n")
    said = run("profile", users, "--out", "p.jsonl")
    assert (said.code, said.err) == (2, "error: cp-agents.toml: no option 'smaples' in any verb\n")


def test_one_configuration_serves_verbs_whose_options_differ_in_kind(tmp_path: Path) -> None:
    """`backend` may be repeated in `bench run`, `users` is a number in one verb and a file in another."""
    path = tmp_path / "c.toml"
    path.write_text(
        'backend = "lexicon"\nsamples = 3\ndraws = 20\nusers = 9\ntau = ["2", "age=3"]\n'
        '[bench]\nseed = 5\n[bench.simulate]\njson = "s.json"\n[audit]\nby = "gender"\n'
    )
    found = read_config(path)
    assert found["profile"]["backend"] == "lexicon"
    assert found["profile"]["tau"] == ["2", "age=3"]
    run_, simulate = found["bench"]["run"], found["bench"]["simulate"]
    assert run_ == {"backend": ["lexicon"], "samples": 3, "draws": 20, "seed": 5}
    assert (simulate["samples"], simulate["users"], simulate["seed"]) == ([3], 9, 5)
    assert simulate["json_file"] == "s.json"
    assert "users" not in found["bench"]["table"]
    assert found["audit"]["by"] == ["gender"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[bench.rum]\nsamples = 2\n", r"\[bench\] has no verb or option 'rum'"),
        ("[bench.run]\nsampels = 2\n", r"\[bench.run\] has no option 'sampels'"),
        ("[bench]\nsampels = 2\n", r"\[bench\] has no verb or option 'sampels'"),
        ("bench = 3\n", r"\[bench\] should be a table"),
        ('draws = "many"\n', "draws cannot be 'many' in any verb"),
        ("[nowhere]\ndraws = 3\n", "no option 'nowhere' in any verb"),
    ],
)
def test_a_configuration_that_no_verb_takes_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(path)


def test_doctor_with_and_without_an_endpoint() -> None:
    said = run("doctor")
    assert said.code == 0
    assert "lexicon, openai, replay" in said.out
    with running_server(LoopbackConfig()) as server:
        said = run("doctor", "--base-url", server.url)
        assert said.code == 0
        assert "models:" in said.out
    said = run("doctor", "--base-url", "http://127.0.0.1:9/v1")
    assert said.code == 1
    assert "no answer" in said.out


# -- bad input: one sentence, exit code 2 -----------------------------------------------------------------


def newer_store() -> str:
    TraceStore("newer.db").close()
    Database("newer.db")["_sqlite_migrations"].insert(
        {"migration_set": "cp_agents", "name": "m9", "applied_at": "x"}
    )
    return "newer.db"


def file(name: str, text: str) -> str:
    Path(name).write_text(text)
    return name


TWICE = "attributes: [{name: pet, tags: [{name: Cat}, {name: Cat}]}]"
BAD: dict[str, tuple[Any, str]] = {
    "missing file": (lambda u: ["nowhere.jsonl"], "no file at nowhere.jsonl"),
    "not json": (lambda u: [file("x", "hello\n")], "x line 1: not JSON at column 1"),
    "json but no object": (
        lambda u: [file("x", "[1]\n")],
        "x line 1: expected a JSON object for a user record, found a list",
    ),
    "no user_id": (lambda u: [file("x", '{"watched": []}\n')], 'x line 1: the record has no "user_id"'),
    "duplicate ids": (
        lambda u: [file("x", '{"user_id": "a"}\n{"user_id": "a"}\n')],
        "x line 2: duplicate user_id 'a', first seen on line 1",
    ),
    "bad item": (
        lambda u: [file("x", '{"user_id": "a", "watched": [["t", "many"]]}\n')],
        '"watched" item 1: the weight',
    ),
    "empty file": (lambda u: [file("x", "\n")], "x holds no user records"),
    "unknown backend": (lambda u: [u, "--backend", "oracle:x"], "unknown backend 'oracle:x'"),
    "missing key": (lambda u: [u, "--backend", "openai:gpt"], "OPENAI_API_KEY"),
    "missing recording": (lambda u: [u, "--backend", "replay:no.db"], "no recording at no.db"),
    "duplicate tag": (
        lambda u: [u, "--taxonomy", file("t.yaml", f"name: t\n{TWICE}")],
        "taxonomy t.yaml: attribute 'pet': duplicate tag 'Cat'",
    ),
    "no taxonomy": (lambda u: [u, "--taxonomy", "none.yaml"], "no taxonomy file at none.yaml"),
    "tau out of range": (lambda u: [u, "--tau", "age=7"], "--tau age=7"),
    "tau of nothing": (lambda u: [u, "--tau", "shoe=2"], "shoe"),
    "unknown vote": (lambda u: [u, "--vote", "loudest"], "unknown vote 'loudest'"),
    "unknown fanout": (lambda u: [u, "--fanout", "all"], "unknown fanout 'all'"),
    "samples": (lambda u: [u, "--samples", "0"], "samples should be between 1 and 1000, found 0"),
    "newer store": (lambda u: [u, "--store", newer_store()], "newer version of cp-agents"),
    "no store": (
        lambda u: [u, "--store", file("s.txt", "no database " * 100)],
        "cannot open the store s.txt",
    ),
    "no folder for out": (lambda u: [u, "--out", "no/p.jsonl"], "cannot write no/p.jsonl"),
    "review rule": (lambda u: [u, "--review", "mood=1"], "--review mood"),
    "a wave of nothing": (
        lambda u: [u, "--wave", "2"],
        "--wave and --adaptive-p say when to stop drawing: they take --adaptive",
    ),
    "a probability of nothing": (
        lambda u: [u, "--adaptive-p", "0.9"],
        "--wave and --adaptive-p say when to stop drawing: they take --adaptive",
    ),
    "budget without prices": (
        lambda u: [u, "--backend", "openai:m", "--base-url", "http://127.0.0.1:9/v1", "--budget-usd", "1"],
        "price",
    ),
    "calibrator": (lambda u: [u, "--calibrator", file("c.json", "{}")], "c.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(name: str, users: str) -> None:
    make, sentence = BAD[name]
    arguments = make(users)
    said = run("profile", *([] if "--out" in arguments else ["--out", "p.jsonl"]), *arguments)
    assert said.code == 2, (said.out, said.err)
    assert sentence in said.err
    errors = [line for line in said.err.splitlines() if line]
    assert len(errors) == 1, said.err
    assert errors[0].startswith("error: ")
    assert "Traceback" not in said.err


def test_one_bad_line_is_reported_with_its_number_and_does_not_stop_the_rest() -> None:
    text = "".join(json.dumps(r) + "\n" for r in RECORDS[:2]) + "{broken\n" + json.dumps(RECORDS[2]) + "\n"
    said = run("profile", file("users.txt", text), "--out", "p.jsonl", "--samples", "2")
    assert said.code == 2
    assert said.err.startswith("error: users.txt line 3: not JSON at column 2")
    assert [p["user_id"] for p in lines("p.jsonl")] == ["u0", "u1", "u2"]


def test_main_prints_the_sentence_and_exits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cp-agents", "profile", "nowhere.jsonl", "--out", "p.jsonl"])
    with pytest.raises(SystemExit) as ended:
        cp_agents.cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no file at nowhere.jsonl\n"


def test_two_files_are_two_runs_and_the_same_file_is_found_again(users: str) -> None:
    other = file("other.jsonl", json.dumps({**RECORDS[0], "searched": ["truck stop"]}) + "\n")
    for path in (users, other, users):
        assert run("profile", path, "--out", "p.jsonl", "--samples", "2").code == 0
    with TraceStore("traces.db") as store:
        assert [row[0] for row in store.rows("select count(*) from records group by run_id order by 1")] == [
            1,
            4,
        ]
        assert len(store.rows("select * from runs")) == 2


def test_a_run_in_which_nothing_answered_is_an_error(users: str) -> None:
    recorded = file("recorded.jsonl", json.dumps({"user_id": "x", "samples": [{"text": "hm"}]}) + "\n")
    said = run("profile", users, "--backend", f"replay:{recorded}", "--out", "p.jsonl")
    assert said.code == 1
    assert "no sample gave a usable answer" in said.err
    endpoint = ("--backend", "openai:m", "--base-url", "http://127.0.0.1:9/v1", "--timeout", "1")
    said = run("profile", users, *endpoint, "--out", "p.jsonl")
    assert said.code == 1
    assert "is the endpoint up" in said.err
    assert "the same command goes on" in said.err


# -- files, budgets and what is not calibrated ---------------------------------------------------------------


def test_replay_and_calibrate_do_not_overwrite_what_they_read(users: str) -> None:
    assert run("profile", users, "--out", "p.jsonl", "--samples", "3").code == 0
    gold = file("gold.jsonl", json.dumps({"user_id": "u0", "truth": {"gender": "Female"}}) + "\n")
    before = Path("traces.db").read_bytes()
    for arguments in (
        ("replay", "--out", "traces.db"),
        ("calibrate", "fit", "--out", "traces.db"),
        ("calibrate", "fit", "--gold", gold, "--out", gold),
    ):
        said = run(*arguments)
        assert said.code == 2
        assert "it is a file that this command reads or keeps its data in" in said.err
    assert Path("traces.db").read_bytes() == before


def test_a_spent_budget_says_how_to_get_what_is_done() -> None:
    unlike = [{**record, "posted": [f"note {i}"]} for i, record in enumerate(RECORDS)]
    users = file("unlike.jsonl", "".join(json.dumps(r) + "\n" for r in unlike))
    with running_server(LoopbackConfig()) as server:
        arguments = (
            "--backend",
            "openai:m",
            "--base-url",
            server.url,
            "--samples",
            "2",
            "--concurrency",
            "1",
        )
        said = run("profile", users, "--out", "p.jsonl", *arguments, "--budget-tokens", "3000")
    assert said.code == 1
    assert "the budget of 3000 tokens is spent" in said.err
    assert not Path("p.jsonl").exists()
    command = said.err.partition("`cp-agents ")[2].partition("`")[0].split()
    assert run(*command).code == 0
    done = lines("p.jsonl")
    assert 0 < len(done) < len(RECORDS)


def test_the_store_is_closed_when_a_run_has_ended(users: str) -> None:
    assert run("profile", users, "--out", "p.jsonl", "--samples", "2").code == 0
    # The last connection to close takes the write-ahead log with it.
    assert not Path("traces.db-wal").exists()


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("oracle:x", "unknown backend 'oracle:x'"),
        ("openai:", "the openai backend needs a model name"),
        ("replay:no.db", "no recording at no.db"),
        ("vllm-server:", "vllm-server needs the server's URL"),
        ("vllm-server:ftp://x", "the base URL should begin with http"),
        ("ensemble:lexicon,replay:no.db", "no recording at no.db"),
        ("langchain:nowhere:model", "cannot be loaded"),
    ],
)
def test_plan_checks_the_backend_as_far_as_it_goes_without_a_call(
    users: str, spec: str, sentence: str
) -> None:
    said = run("plan", users, "--backend", spec)
    assert said.code == 2
    assert sentence in said.err


@pytest.mark.parametrize("spec", ["openai:m", "vllm-server:http://127.0.0.1:9", "ensemble:openai:a,openai:b"])
def test_plan_needs_neither_key_nor_server(users: str, spec: str) -> None:
    assert run("plan", users, "--backend", spec).code == 0


def test_every_profile_says_which_attributes_are_calibrated() -> None:
    half = [
        {"user_id": f"h{i}", "posted": [f"note {i}", "my husband" if i % 2 else "my wife"]} for i in range(24)
    ]
    said = run("profile", file("half.jsonl", "".join(json.dumps(r) + "\n" for r in half)), "--out", "p.jsonl")
    assert said.code == 0
    assert "(too few votes on " in said.out
    few = said.out.partition("(too few votes on ")[2].partition(")")[0].split(", ")
    profiles = lines("p.jsonl")
    assert 0 < len(few) < len(profiles[0]["profile"])
    for profile in profiles:
        assert {name for name, value in profile["profile"].items() if not value["calibrated"]} == set(few)
    run("replay", "--calibrator", "none", "--out", "r.jsonl")
    assert not any(value["calibrated"] for line in lines("r.jsonl") for value in line["profile"].values())
