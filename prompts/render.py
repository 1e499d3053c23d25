"""The one renderer: a cue block in, the messages out, byte-equal for teacher, training rows and serving.

A language is a folder of templates: `system.md` (task, principles, confidence criteria, output format),
`attribute.md` (one attribute and its tags), `user.md` (around the record) and, optionally, `example.yaml` (the
one-shot example) and `open.md` (an attribute whose values are free text; by default the English one). `{{name}}` is a
placeholder. All that is equal for all users comes first - system, example user, example assistant - and is built
once, so that a server's prefix cache holds it; the user comes last.

A compact prompt is for a student that has learned taxonomy and principles by heart: its `system.md` names the
attributes by `{{names}}`, and may leave out `{{attributes}}` (with `attribute.md` and the taxonomy's example) and
`{{format}}`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from cp_agents.cues import assemble_cues, cue_lines
from cp_agents.errors import InputError
from cp_agents.open_text import MOST_WORDS
from cp_agents.schema import CONFIDENCE_LEVELS, Message, UserRecord
from cp_agents.taxonomy import Attribute, Taxonomy, Text, in_language
from cp_agents.wire import WireAnswer, write_answer

FENCE_OPEN = "<record>"
FENCE_CLOSE = "</record>"

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_WORDS = re.compile(r"\{\{\s*(words)\s*\}\}")
_OPEN = "open.md"
_PIECES = re.compile(r"\s*[;；]\s*")


class _Misfit(InputError):
    """The example answers other attributes or tags than the taxonomy has."""


@dataclass(frozen=True)
class Prompt:
    """A prompt for one taxonomy in one language, ready for any record."""

    language: str
    version: str
    """12 hex digits over every byte that is not the record's: templates, example, and what they say of the taxonomy."""
    shared: tuple[Message, ...]
    """What precedes the user: system, and the example's user and assistant turn where there is one."""
    before: str
    """The user message up to the fence."""
    after: str
    """The user message behind the fence."""

    def messages(self, cue_block: str) -> tuple[Message, ...]:
        """System, example user, example assistant, user.

        `cue_block` is `AssembledCues.text`. Raises `InputError` if it holds a fence tag, which no assembled
        block does.
        """
        if FENCE_OPEN in cue_block or FENCE_CLOSE in cue_block:
            raise InputError(
                f"the cue block holds {FENCE_OPEN} or {FENCE_CLOSE}; assemble it with assemble_cues"
            )
        return (
            *self.shared,
            Message("user", f"{self.before}{FENCE_OPEN}\n{cue_block}\n{FENCE_CLOSE}{self.after}"),
        )


def fenced_block(messages: Iterable[Message]) -> str:
    """The cue block of the last user message. Raises `InputError` if that has no fence."""
    content = next((m.content for m in reversed(tuple(messages)) if m.role == "user"), "")
    _, opened, rest = content.partition(f"{FENCE_OPEN}\n")
    block, closed, _ = rest.partition(f"\n{FENCE_CLOSE}")
    if not opened or not closed:
        raise InputError(f"the last user message has no record between {FENCE_OPEN} and {FENCE_CLOSE}")
    return block


def load_prompt(taxonomy: Taxonomy, language: str = "en") -> Prompt:
    """The prompt for `taxonomy` in a built-in language, or from the folder of templates that `language` names.

    The one-shot example is the taxonomy's own where the prompt lists its tags, else that of the language. A built-in
    language's example that answers other attributes or tags than the taxonomy has is left out; any other example
    has to fit.
    Raises `InputError` for an unknown language, a template that lacks a placeholder, a wrong example.
    """
    folder, code, built_in = _folder(language)
    system, lists_tags = _system(taxonomy, folder, code)
    user = _template(folder, "user.md", {"record"})
    parts = _PLACEHOLDER.split(user)
    if len(parts) != 3 or FENCE_OPEN in user or FENCE_CLOSE in user:
        raise InputError(
            f"template {folder / 'user.md'}: expected {{{{record}}}} once, and no fence around it"
        )
    example = _example(taxonomy, folder, built_in, the_taxonomys_own=lists_tags)
    return _assemble(code, system, parts[0], parts[2], example)


def _assemble(language: str, system: str, before: str, after: str, example: tuple[str, str] | None) -> Prompt:
    bare = Prompt(language, "", (Message("system", system),), before, after)
    shared = bare.shared
    if example is not None:
        shared = (*bare.messages(example[0]), Message("assistant", example[1]))
    content = "\x1f".join((*(m.content for m in shared), before, after))
    return Prompt(language, hashlib.sha256(content.encode()).hexdigest()[:12], shared, before, after)


def _system(taxonomy: Taxonomy, folder: Traversable, language: str) -> tuple[str, bool]:
    """The system message, and whether it lists the taxonomy's tags."""
    says = set(_PLACEHOLDER.findall(_read(folder, "system.md") or ""))
    required = {"names"} if "names" in says else {"attributes", "format"}
    template = _template(folder, "system.md", required, {"attributes", "format"})
    values = {"names": ", ".join(taxonomy.names), "format": _answer_form(taxonomy.names)}
    if "attributes" in says:
        attribute = _template(folder, "attribute.md", {"name", "tags"}, {"description"})
        values["attributes"] = _attributes(taxonomy, language, attribute, _open_template(taxonomy, folder))
    return _fill(template, values), "attributes" in says


def _open_template(taxonomy: Taxonomy, folder: Traversable) -> str:
    """How an open attribute is asked for; empty where the taxonomy has none."""
    if not any(attribute.open for attribute in taxonomy.attributes):
        return ""
    if not folder.joinpath(_OPEN).is_file():
        folder = built_in_languages()["en"]
    return _fill(
        _template(folder, _OPEN, {"name", "words"}, {"description"}), {"words": str(MOST_WORDS)}, _WORDS
    )


# --- templates --------------------------------------------------------------------------------------------


def built_in_languages() -> dict[str, Traversable]:
    """Folders of the languages that need no templates of one's own, by code."""
    found = resources.files("cp_agents.prompts").iterdir()
    at_hand = {e.name: e for e in found if e.is_dir() and e.joinpath("system.md").is_file()}
    return dict(sorted(at_hand.items()))


def _folder(language: str) -> tuple[Traversable, str, bool]:
    """Where the templates of `language` lie, its code, and whether it is built in."""
    at_hand = built_in_languages()
    if language in at_hand:
        return at_hand[language], language, True
    own = Path(language)
    if language and own.is_dir():
        return own, own.resolve().name, False
    raise InputError(
        f"no prompt language {language!r}: there are {', '.join(at_hand)}, or name a folder of templates"
    )


def _template(folder: Traversable, name: str, required: set[str], optional: Set[str] = frozenset()) -> str:
    """A template's text without the line break at its end, its placeholders checked."""
    text = _read(folder, name)
    if text is None:
        raise InputError(f"no template {name} in {folder}")
    found = set(_PLACEHOLDER.findall(text))
    if missing := sorted(required - found):
        raise InputError(f"template {folder / name}: the placeholder {{{{{missing[0]}}}}} is missing")
    if unknown := sorted(found - required - set(optional)):
        raise InputError(f"template {folder / name}: unknown placeholder {{{{{unknown[0]}}}}}")
    return text.strip()


def _read(folder: Traversable, name: str) -> str | None:
    path = folder.joinpath(name)
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"template {folder / name}: not UTF-8 text") from None


def _fill(template: str, values: Mapping[str, str], placeholder: re.Pattern[str] = _PLACEHOLDER) -> str:
    """All placeholders in one pass, so that what is put in is never taken for a placeholder."""
    return placeholder.sub(lambda match: values[match[1]], template)


def _attributes(taxonomy: Taxonomy, language: str, template: str, open_template: str) -> str:
    """The taxonomy as text: every attribute with every tag and its description."""

    def one_line(text: Text) -> str:
        return " ".join(in_language(text, language).split())

    def block(attribute: Attribute) -> str:
        tags = ((tag.name, one_line(tag.description)) for tag in attribute.tags)
        filled = _fill(
            open_template if attribute.open else template,
            {
                "name": attribute.name,
                "description": one_line(attribute.description),
                "tags": "\n".join(f"- {name}: {says}" if says else f"- {name}" for name, says in tags),
            },
        )
        return re.sub(r"\n{2,}", "\n", filled)  # an attribute without a description leaves no gap

    parts = (one_line(taxonomy.description), *(block(a) for a in taxonomy.attributes))
    return "\n\n".join(part for part in parts if part)


def _answer_form(attributes: Iterable[str]) -> str:
    """The empty form of an answer, one line per attribute."""
    form = write_answer(WireAnswer(name, "...", 0, "...") for name in attributes)
    return form.replace("<score>0</score>", "<score>...</score>")


# --- the one-shot example ---------------------------------------------------------------------------------


def _example(
    taxonomy: Taxonomy, folder: Traversable, built_in: bool, *, the_taxonomys_own: bool
) -> tuple[str, str] | None:
    """The example's cue block and answer, or None where there is none for this taxonomy."""
    if taxonomy.example is not None and the_taxonomys_own:
        return _render_example(taxonomy, taxonomy.example, f"the example of taxonomy {taxonomy.name!r}")
    text = _read(folder, "example.yaml")
    if text is None:
        return None
    where = f"the example in {folder / 'example.yaml'}"
    try:
        return _render_example(taxonomy, yaml.safe_load(text), where)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML ({' '.join(str(error).split())})") from None
    except _Misfit:
        if built_in:
            return None
        raise


def _render_example(taxonomy: Taxonomy, raw: object, where: str) -> tuple[str, str]:
    if not isinstance(raw, dict) or not isinstance(raw.get("answer"), dict):
        raise InputError(f"{where}: expected a mapping with `record` and `answer`")
    answer: dict[str, Any] = raw["answer"]
    if set(answer) != set(taxonomy.names):
        raise _Misfit(f"{where}: the answer should have the attributes {', '.join(taxonomy.names)}")
    record = raw.get("record")
    try:
        block = assemble_cues(
            UserRecord.from_dict({"user_id": "example", **record} if isinstance(record, dict) else record)
        ).text
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    contents = [block[line.start : line.end] for line in cue_lines(block)]
    answers = [_example_answer(taxonomy[name], answer[name], contents, where) for name in taxonomy.names]
    return block, write_answer(answers)


def _example_answer(attribute: Attribute, raw: object, contents: Sequence[str], where: str) -> WireAnswer:
    where = f"{where}, attribute {attribute.name!r}"
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected `tag`, `score` and `evidence`")
    tag, score, evidence = raw.get("tag"), raw.get("score"), raw.get("evidence") or []
    known = (attribute.match_tag(str(tag)),) if attribute.open else attribute.names
    if not isinstance(tag, str) or tag not in known:
        raise _Misfit(f"{where}: {tag!r} is not one of its tags")
    if isinstance(score, bool) or score not in CONFIDENCE_LEVELS:
        raise InputError(f"{where}: the score should be 1 to 5, found {score!r}")
    pieces = [p for p in _PIECES.split(evidence) if p] if isinstance(evidence, str) else evidence
    if not isinstance(pieces, list):
        raise InputError(f"{where}: the evidence should be text or a list of texts")
    for piece in pieces:
        if not isinstance(piece, str) or not piece or not any(piece in content for content in contents):
            raise InputError(f"{where}: the evidence {piece!r} does not stand in the example's record")
    return WireAnswer(attribute.name, tag, score, "; ".join(pieces))
