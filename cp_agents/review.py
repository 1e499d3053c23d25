"""Human review: the one question a record asks, and the shapes in which it may be answered.

The question is one LangGraph `interrupt` that holds every attribute that needs a person. It can be answered
with our own dict, with the list that Agent Inbox sends, or with the `decisions` of LangChain's
human-in-the-loop middleware; all three become one validated `ReviewResponse`. An answer that does not
validate is refused before anything is saved, so the interrupt can be answered again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from cp_agents.errors import InputError
from cp_agents.schema import AttributeProfile
from cp_agents.taxonomy import Taxonomy

ACTION = "review_profile"


class ReviewAnswer(BaseModel):
    """A person's word on one attribute."""

    model_config = ConfigDict(extra="forbid")

    tag: str
    """A tag of the closed set, NA included."""
    note: str | None = None


class ReviewResponse(BaseModel):
    """A person's answers: `{"answers": {attribute: tag or {tag, note}}, "reviewer": name}`.

    `accept: true` keeps the model's tag for every attribute that `answers` leaves out; `ignore: true` leaves
    them waiting in the store's review queue. `note` goes with every answer that has none of its own.
    """

    model_config = ConfigDict(extra="forbid")

    answers: dict[str, ReviewAnswer] = Field(default_factory=dict)
    accept: bool = False
    ignore: bool = False
    reviewer: str = "anonymous"
    note: str | None = None


def response_schema(taxonomy: Taxonomy, proposed: Mapping[str, str]) -> type[ReviewResponse]:
    """The response type for one record: like `ReviewResponse`, restricted to the attributes asked about.

    `proposed` maps those attributes to the model's tags. Tags are checked against the taxonomy (aliases and
    case are folded), and an answer that leaves an attribute open is refused.
    """

    def check(data: Any) -> Any:
        return _canonical(_unwrap(data), taxonomy, proposed)

    validators: dict[str, Any] = {"normalise": model_validator(mode="before")(check)}
    return create_model("ReviewResponse", __base__=ReviewResponse, __validators__=validators)


def parse_response(data: object, taxonomy: Taxonomy, proposed: Mapping[str, str]) -> ReviewResponse:
    """Validate an answer outside a graph. Raises `InputError` with one sentence."""
    try:
        return response_schema(taxonomy, proposed).model_validate(data)
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def question(user_id: str, run_id: str, wanted: Mapping[str, AttributeProfile], cues: str) -> dict[str, Any]:
    """The interrupt's value: an Agent Inbox request whose arguments are the proposed tags."""
    proposed = {name: value.voted for name, value in wanted.items()}
    lines = [
        f"- {name}: {value.voted} (confidence {value.confidence}, vote share {value.vote_share:.2f};"
        f" {', '.join(value.reasons)}){_quoted(value)}"
        for name, value in wanted.items()
    ]
    return {
        "action_request": {"action": ACTION, "args": proposed},
        # A free-text response could not be read as tags, so no form for one is offered.
        "config": {"allow_accept": True, "allow_edit": True, "allow_respond": False, "allow_ignore": True},
        "description": "\n".join([f"Review of user {user_id} (run {run_id}):", *lines, "", "Record:", cues]),
        "user_id": user_id,
        "run_id": run_id,
        "attributes": {
            name: value.model_dump(mode="json", exclude_none=True) for name, value in wanted.items()
        },
    }


def _quoted(value: AttributeProfile) -> str:
    return "".join(f' "{e.text}"' for e in value.evidence[:2])


def _unwrap(data: Any) -> Any:
    """Agent Inbox and middleware shapes as our own dict; our own dict as it is."""
    if isinstance(data, Mapping) and isinstance(data.get("decisions"), list):
        data = data["decisions"]
    if isinstance(data, list):
        if len(data) != 1 or not isinstance(data[0], Mapping):
            raise ValueError("expected one decision for the one question asked")
        data = data[0]
    if not isinstance(data, Mapping):
        raise ValueError('expected an object such as {"answers": {"attribute": "tag"}, "reviewer": "name"}')
    kind = data.get("type")
    if kind is None:
        return data
    said = {name: data[name] for name in ("reviewer", "note") if data.get(name) is not None}
    if kind in {"accept", "approve"}:
        return {"accept": True, **said}
    if kind in {"ignore", "reject"}:
        return {"ignore": True, **said}
    if kind in {"edit", "response", "respond"}:
        edited = data.get("edited_action") or data.get("args")
        arguments = edited.get("args", edited) if isinstance(edited, Mapping) else edited
        if isinstance(arguments, Mapping):
            return {"answers": dict(arguments), **said}
        raise ValueError("an edited answer should hold attributes and tags in `args`")
    raise ValueError(
        f"unknown kind of answer {kind!r}: expected accept, edit, response, ignore, approve or reject"
    )


def _canonical(data: Mapping[str, Any], taxonomy: Taxonomy, proposed: Mapping[str, str]) -> dict[str, Any]:
    known = set(ReviewResponse.model_fields)
    # The short form {"attribute": "tag"}: every key is an attribute asked about.
    if data and not known & set(data) and set(data) <= set(proposed):
        data = {"answers": dict(data)}
    if unknown := set(data) - known:
        raise ValueError(
            f"unknown field {sorted(unknown)[0]!r}: expected answers, accept, ignore, reviewer or note"
        )
    raw = data.get("answers") or {}
    if not isinstance(raw, Mapping):
        raise ValueError("`answers` should be an object from attribute to tag")
    answers: dict[str, dict[str, Any]] = {}
    for name, value in raw.items():
        if name not in proposed:
            raise ValueError(f"attribute {name!r} is not under review here: expected {', '.join(proposed)}")
        answer = dict(value) if isinstance(value, Mapping) else {"tag": value}
        tag = taxonomy[name].match_tag(str(answer.get("tag", "")))
        if tag is None:
            raise ValueError(
                f"{answer.get('tag')!r} is no tag of {name}: expected {', '.join(taxonomy[name].names)}"
            )
        answers[name] = answer | {"tag": tag}
    if data.get("accept"):
        answers = {name: {"tag": tag} for name, tag in proposed.items()} | answers
    elif not data.get("ignore") and (left := [name for name in proposed if name not in answers]):
        raise ValueError(f"no answer for {', '.join(left)}: answer them, or set accept or ignore")
    if (note := data.get("note")) is not None:
        answers = {name: {"note": note} | answer for name, answer in answers.items()}
    return {**data, "answers": answers}
