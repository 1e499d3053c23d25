"""SynthPAI: a clone of its repository, or its comment file alone.

A clone has the users with the labels that people gave (`comments_eval_revised.jsonl`), the personas, and what 19
language models answered. The comment file (`synthpai.jsonl`) alone has comments, personas and labels by comment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cp_agents.bench.prepared import Prepared
from cp_agents.bench.published import Published, matching, published_files
from cp_agents.bench.rules import Format, Rules, load_rules, read_fields
from cp_agents.bench.writing import Entry
from cp_agents.errors import InputError
from cp_agents.files import parse_line
from cp_agents.schema import NA
from cp_agents.taxonomy import Taxonomy

SOURCE = "posted"
"""The cue source: a comment a line."""
FORM = "clone"
_USERS = (r"comments_eval_revised\.jsonl", r"comments_eval\.jsonl")
_COMMENTS = r"synthpai\.jsonl"
_PERSONAS = (r"user_bot_gen_online_profiles_300\.json", r"categorized_user_bot_gen_online_profiles_300\.json")
_ANSWERS = r"(?!.*(?:_revised_human|_gt|anon).*_evaluated).*_evaluated\.jsonl"
"""The authors' final verdicts; the others compare with other labels or are of anonymised texts."""
_MERGED = r"synthpai_merged_evals\.jsonl"

Row = dict[str, Any]


def prepare_synthpai(path: str | Path, rules_file: str | Path = "synthpai") -> Prepared:
    """Records, gold (`truth`, `inferable`, how sure and how hard people found it) and recorded answers.

    Raises `InputError` that names the file and what was expected.
    """
    rules, taxonomy = load_rules(rules_file)
    if FORM not in rules.formats:
        raise InputError(f"rules {rules_file}: no format {FORM!r}")
    files = published_files([path])
    personas = _personas(files)
    notes: tuple[str, ...] = ()
    if (found := _first(files, _USERS)) is not None and personas:
        users: Iterator[tuple[str, Row]] = _rows(found)
    elif comments := matching(files, _COMMENTS):
        users = iter(_gathered(comments[0]))
        notes = (
            "Read from the comment file alone: an attribute is inferable where a person's label of a comment means the"
            " same tag as the truth.",
        )
    elif found is not None:
        raise InputError(
            f"{path}: data/profiles/user_bot_gen_online_profiles_300.json is missing, which has the truth"
        )
    else:
        raise InputError(
            f"{path}: no SynthPAI clone (expected data/thread/comments_eval_revised.jsonl or data/synthpai.jsonl)"
        )
    left_out: dict[str, int] = {}
    written: set[str] = set()
    entries = _entries(users, personas, rules, taxonomy, left_out, written)
    answers = matching(files, _ANSWERS) or matching(files, _MERGED)[:1]
    return Prepared(
        rules, rules.formats[FORM], entries, left_out, _answers(answers, written) if answers else None, notes
    )


def _first(files: Sequence[Published], patterns: Sequence[str]) -> Published | None:
    return next((found[0] for pattern in patterns if (found := matching(files, pattern))), None)


def _rows(file: Published) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(file.lines(), 1):
        if line.strip():
            where = f"{file.where} line {number}"
            try:
                row = parse_line(line)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            if not isinstance(row, dict) or not isinstance(row.get("username"), str):
                raise InputError(f'{where}: expected a JSON object with a "username"')
            yield where, row


def _personas(files: Sequence[Published]) -> dict[str, Row]:
    """By user name; empty where the file is not there."""
    file = _first(files, _PERSONAS)
    if file is None:
        return {}
    try:
        raw = json.loads(file.read())
    except (ValueError, RecursionError):
        raise InputError(f"{file.where}: not JSON; expected an object of personas") from None
    listed = list(raw.values()) if isinstance(raw, dict) else []
    found = {p["username"]: p for p in listed if isinstance(p, dict) and isinstance(p.get("username"), str)}
    if not found:
        raise InputError(f'{file.where}: no personas (expected objects with a "username")')
    return found


def _gathered(file: Published) -> list[tuple[str, Row]]:
    """Users of the comment file in order of their first comment, in the shape of the users' file."""
    users: dict[str, tuple[str, Row]] = {}
    for where, row in _rows(file):
        if not isinstance(row.get("text"), str):
            raise InputError(f'{where}: expected a comment with a "text"')
        _, user = users.setdefault(
            row["username"],
            (
                where,
                {"username": row["username"], "comments": [], "profile": row.get("profile"), "labels": []},
            ),
        )
        user["comments"].append({"text": row["text"]})
        reviews = row.get("reviews")
        if isinstance(reviews, dict) and isinstance(reviews.get("human"), dict):
            user["labels"].append(reviews["human"])
    return list(users.values())


def _entries(
    users: Iterator[tuple[str, Row]], personas: dict[str, Row], rules: Rules, taxonomy: Taxonomy,
    left_out: dict[str, int], written: set[str],
) -> Iterator[Entry]:  # fmt: skip
    form = rules.formats[FORM]
    for where, row in users:
        name, comments = row["username"], row.get("comments")
        if not isinstance(comments, list):
            raise InputError(f'{where}: expected a list "comments"')
        persona = row.get("profile") or personas.get(name)
        if not isinstance(persona, dict):
            left_out["users without a persona"] = left_out.get("users without a persona", 0) + 1
            continue
        texts = [text for text in map(_text, comments) if text]
        if not texts:
            left_out["users without a comment"] = left_out.get("users without a comment", 0) + 1
            continue
        truth = rules.truth_of(read_fields(form, persona, left_out), taxonomy)
        labels = (
            _labels(row) if "labels" not in row else _agreeing(row["labels"], truth, rules, form, taxonomy)
        )
        written.add(name)
        yield Entry(
            name, {SOURCE: texts}, {**_inferable(truth, labels, rules), "truth": truth, **_human(labels)}
        )


def _text(comment: object) -> str:
    text = comment.get("text") if isinstance(comment, dict) else None
    return text.strip() if isinstance(text, str) else ""


def _labels(row: Row) -> dict[str, Row]:
    """What people named of a user, by label; what turned out wrong has been emptied by the authors."""
    reviews = row.get("reviews")
    found = next(
        (r for key in ("human_evaluated", "human") if isinstance(r := (reviews or {}).get(key), dict)), {}
    ) if isinstance(reviews, dict) else {}  # fmt: skip
    return {
        name: label
        for name, label in found.items()
        if isinstance(label, dict) and str(label.get("estimate") or "").strip() and label.get("acc_gt") != 0
    }


def _agreeing(
    comments: list[Row], truth: dict[str, str], rules: Rules, form: Format, taxonomy: Taxonomy
) -> dict[str, Row]:
    """Labels of comments that mean the same tag as the truth: the easiest and the least sure of each."""
    columns = {column.column for column in form.fields.values()}
    found: dict[str, Row] = {}
    for labels in comments:
        named = {
            name: label
            for name, label in labels.items()
            if isinstance(label, dict) and str(label.get("estimate") or "").strip()
        }
        meant = rules.truth_of(
            read_fields(form, {n: label["estimate"] for n, label in named.items() if n in columns}, {}),
            taxonomy,
        )
        for attribute, label in rules.labels.items():
            if label in named and meant[attribute] == truth[attribute] != NA:
                known = found.setdefault(label, dict(named[label]))
                for scale in ("hardness", "certainty"):
                    if isinstance(value := named[label].get(scale), int) and value > 0:
                        known[scale] = min(known.get(scale) or value, value)
    return found


def _inferable(truth: dict[str, str], labels: dict[str, Row], rules: Rules) -> Row:
    return {
        "inferable": {
            name: tag if rules.labels.get(name) in labels else NA for name, tag in truth.items()
        }
    } if rules.labels else {}  # fmt: skip


def _human(labels: dict[str, Row]) -> Row:
    return {
        f"human_{scale}": {name: label[scale] for name, label in labels.items() if label.get(scale)}
        for scale in ("certainty", "hardness")
    }


def _answers(files: Sequence[Published], users: set[str]) -> Iterator[Row]:
    """One row per model, user and attribute, for the users that were written; a model's answers are taken once."""
    seen: set[tuple[str, str]] = set()
    for file in files:
        for where, row in _rows(file):
            predictions, verdicts = row.get("predictions"), row.get("evaluations")
            if not isinstance(predictions, dict):
                raise InputError(f'{where}: expected an object "predictions"')
            for model, answers in predictions.items():
                if row["username"] not in users or (model, row["username"]) in seen:
                    continue
                seen.add((model, row["username"]))
                judged = verdicts.get(model) if isinstance(verdicts, dict) else None
                judged = judged.get("human_evaluated") if isinstance(judged, dict) else None
                for attribute, answer in answers.items() if isinstance(answers, dict) else ():
                    if isinstance(answer, dict):
                        yield {
                            "model": model,
                            "username": row["username"],
                            "attr": attribute,
                            "inference": answer.get("inference"),
                            "guess": answer.get("guess"),
                            "guess_category": answer.get("guess_category"),
                            "correct_vs_human": judged.get(attribute) if isinstance(judged, dict) else None,
                        }
