"""Who belongs to which group: by a gold attribute, or by a field that users report of themselves."""

from __future__ import annotations

from collections.abc import Mapping

from cp_agents.errors import InputError
from cp_agents.schema import NA, SELF_REPORTED
from cp_agents.taxonomy import Taxonomy, fold

_PREFIX = f"{SELF_REPORTED}."

Reported = Mapping[str, Mapping[str, str]]
"""`{user_id: {field: value}}`."""


def groups_by(
    by: str, gold: Mapping[str, Mapping[str, str]], reported: Reported | None, taxonomy: Taxonomy
) -> dict[str, str]:
    """`{user_id: group}` of the users of gold.

    `by` is an attribute of gold (NA is no group), or a self-reported field, by its name alone where gold has no such
    attribute and as `self_reported.FIELD` everywhere. Values of a field that speaks of an attribute are grouped by the
    tag they name, others by what they say, folded. Raises `InputError` where nobody has a group.
    """
    if not by.startswith(_PREFIX) and any(by in truth for truth in gold.values()):
        name = {user: truth[by] for user, truth in gold.items() if truth.get(by, NA) != NA}
        if by in taxonomy:  # aliases are one group
            name = {user: taxonomy[by].match_tag(tag) or tag for user, tag in name.items()}
        found = {user: tag for user, tag in name.items() if tag != NA}
    else:
        field = by.removeprefix(_PREFIX)
        if reported is None:
            raise InputError(
                f"--by {by}: {'' if by.startswith(_PREFIX) else f'gold has no attribute {field!r}; '}for what users"
                " report of themselves give the records with --records, or a store"
            )
        found = {
            user: value for user in gold if (value := reported_value(field, reported.get(user, {}), taxonomy))
        }
        if not found:
            fields = sorted({name for of_user in reported.values() for name in of_user})
            known = f" (fields there: {', '.join(fields)})" if fields else ""
            raise InputError(f"--by {by}: no user of gold reports a field {field!r}{known}")
    if not found:
        raise InputError(f"--by {by}: no user of gold has a tag other than NA")
    return found


def reported_value(field: str, fields: Mapping[str, str], taxonomy: Taxonomy) -> str | None:
    """What the field says: the tag it names where it speaks of an attribute, else its text; None without one."""
    if field in taxonomy and (tag := taxonomy.reported_tags(dict(fields)).get(field)) is not None:
        return tag
    text = next((value for name, value in fields.items() if fold(name) == fold(field)), None)
    return fold(text) or None if text is not None else None
