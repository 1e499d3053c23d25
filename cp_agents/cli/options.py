"""Options that several verbs share."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STORE = Path("traces.db")

InFile = Annotated[
    Path, typer.Argument(metavar="IN", help="JSONL, one user record a line.", show_default=False)
]
OutFile = Annotated[
    Path, typer.Option("--out", help="JSONL to write, one profile a line.", show_default=False)
]
Store = Annotated[Path, typer.Option("--store", help="Trace store (SQLite).")]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help="lexicon, openai:MODEL, vllm-server:URL, vllm:MODEL, transformers:MODEL, langchain:MODULE:OBJECT,"
        " student:NAME, replay:PATH, ensemble:SPEC,SPEC or a plugin's; see docs/backends.md.",
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url", help="Endpoint of an OpenAI-compatible server; for models in this process a model hub."
    ),
]
Taxonomy = Annotated[str, typer.Option("--taxonomy", help="A built-in taxonomy or a YAML file of yours.")]
RunsTaxonomy = Annotated[
    str | None,
    typer.Option(
        "--taxonomy",
        help="A built-in taxonomy or a YAML file of yours; by default the run's own with --store, else profilebench.",
        show_default=False,
    ),
]
Language = Annotated[
    str,
    typer.Option(
        "--language",
        help="Prompt language (en, zh; en-compact, zh-compact for students) or a folder of templates.",
    ),
]
OwnLanguage = Annotated[
    str | None,
    typer.Option(
        "--language",
        help="Prompt language (en, zh; en-compact, zh-compact) or a folder of templates; by default en, and a"
        " student's own.",
        show_default=False,
    ),
]
Samples = Annotated[int, typer.Option("--samples", help="M, samples per record.")]
TokenBudget = Annotated[int, typer.Option("--token-budget", help="Estimated tokens of a record's cues.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Most tokens of one answer.")]
PricesFile = Annotated[
    Path | None,
    typer.Option(
        "--prices", help="TOML or YAML with prices by model; ./prices.toml is read if it is there.",
        show_default=False,
    ),
]  # fmt: skip
PricePrompt = Annotated[float | None, typer.Option("--price-prompt", help="USD per million prompt tokens.")]
PriceCached = Annotated[
    float | None, typer.Option("--price-cached", help="USD per million cached prompt tokens.")
]
PriceCompletion = Annotated[
    float | None, typer.Option("--price-completion", help="USD per million completion tokens.")
]
Run = Annotated[
    str | None, typer.Option("--run", help="Name of the run in the store; the newest by default.")
]
TruthField = Annotated[
    str, typer.Option("--truth-field", help="Field of the gold rows that holds the truth.")
]
BestTruthField = Annotated[
    str | None,
    typer.Option(
        "--truth-field",
        help="Field of the gold rows that holds the truth; inferable, or else truth, by default.",
        show_default=False,
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all numbers as JSON.")]
Draws = Annotated[int, typer.Option("--draws", min=1, help="Resamples for intervals and tests.")]
Vote = Annotated[
    str | None,
    typer.Option("--vote", help="weighted, majority, mean, softmax or dawid_skene; the run's by default."),
]
Confidence = Annotated[
    str | None,
    typer.Option(
        "--confidence",
        help="What an answer weighs: verbal, agreement, logprob or combined; the run's by default.",
    ),
]
TagWeights = Annotated[
    Path | None,
    typer.Option(
        "--tag-weights",
        help="What a few labels taught the vote: a file of `calibrate tags`; the run's by default.",
        show_default=False,
    ),
]
Tau = Annotated[
    list[str] | None,
    typer.Option(
        "--tau",
        help="Threshold 1..5 for all attributes, ATTR=N or ATTR=never; may be repeated.",
        show_default=False,
    ),
]


def files_of(*named: str) -> list[Path]:
    """The files that specs and names stand for, as in replay:PATH#RUN or a taxonomy's; what is no file is left out.

    What is written should not be one of them, see `cp_agents.files.check_out`.
    """
    paths: list[Path] = []
    for name in named:
        rest = name.partition(":")[2]
        for text in (name, rest, rest.partition("#")[0]):
            with suppress(OSError, ValueError):
                if text and Path(text).is_file():
                    paths.append(Path(text))
    return paths


def prices(prompt: float | None, cached: float | None, completion: float | None) -> dict[str, float] | None:
    """Prices in USD per million tokens, None where none were given."""
    given = {"prompt": prompt, "cached": cached, "completion": completion}
    return {name: value for name, value in given.items() if value is not None} or None
