"""`train filter`: from a stored run to the users that reinforcement learning is to see, with an audit of who is not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cp_agents.errors import InputError, MissingExtraError, StoreError
from cp_agents.evaluation.loading import Gold
from cp_agents.files import check_out, whole_file, write_jsonl
from cp_agents.relabel import stored_run
from cp_agents.schema import CONFIDENCE_LEVELS, Status
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import Taxonomy
from cp_agents.trainers import fairness
from cp_agents.trainers.difficulty import SHAPES, LevelArray, Rule, Shape, choose, difficulty, histogram
from cp_agents.trainers.fairness import Group, audit


class Users(NamedTuple):
    """The users of a run, and how sure its votes are of them."""

    user_ids: list[str]
    levels: LevelArray
    """Calibrated confidence 1..5 [U, K], 0 where an attribute failed."""
    voted: dict[str, list[str | None]]
    """The voted tag per attribute [U]; None where it failed."""
    calibrators: list[str]
    """Whose levels they are: the labels of the profiles' calibrators."""


@dataclass(frozen=True)
class Filtered:
    """What a filter kept, and whom it dropped."""

    run_id: str
    shape: Shape
    rule: Rule
    seed: int
    calibrators: list[str]
    before: list[int]
    """Users by level 1 to 5."""
    after: list[int]
    groups: list[Group]
    """Under the chosen shape, see `cp_agents.trainers.fairness.audit`."""
    shapes: dict[Shape, dict[str, Any]]
    """For every shape, asked for as many users: those kept, and the groups that it would put at a disadvantage."""

    @property
    def flagged(self) -> list[Group]:
        """Groups beyond the limit."""
        return [group for group in self.groups if group.flagged]


def filter_users(
    store: TraceStore,
    run_id: str | None,
    out: str | Path,
    *,
    users: Collection[str] | None = None,
    shape: Shape = "m",
    rule: Rule = "mean",
    seed: int = 0,
    keep: int | None = None,
    gold: Gold | None = None,
    limit: float = fairness.LIMIT,
    min_users: int = fairness.MIN_USERS,
    plot: bool = True,
) -> Filtered:
    """Write the kept users of a run to `out` as JSONL `{"user_id", "difficulty"}`, in the run's order.

    With `users`, only those are looked at.

    Beside it lie `OUT.fairness.json` with the audit and, with `plot`, `OUT.png` with the levels before and after.
    Raises `InputError` for settings that cannot be and places that cannot be written, `StoreError` for a run without
    votes, and `MissingExtraError` where a plot needs matplotlib.
    """
    out = Path(out)
    report_file, plot_file = out.with_suffix(".fairness.json"), out.with_suffix(".png")
    if out == plot_file:
        raise InputError(
            f"{out} would be the plot and the users at once: expected another name, as kept.jsonl"
        )
    for path in (out, report_file, *([plot_file] if plot else [])):
        check_out(path, store.path)
    if plot and find_spec("matplotlib") is None:
        raise MissingExtraError("the plot of a filter (leave it out with --no-plot)", "train")
    if seed < 0:
        raise InputError(f"the seed should be 0 or more, found {seed}")
    if not 0 <= limit <= 1:
        raise InputError(f"the limit of disparity should be between 0 and 1, found {limit}")
    run, taxonomy, _ = stored_run(store, run_id)
    there = load_users(store, run, taxonomy, users)
    found = difficulty(there.levels, rule)
    kept = choose(there.user_ids, found, shape, seed=seed, keep=keep)
    if not kept.any():
        raise InputError(
            f"no user of run {run} is left in the shape {shape} (users by level: {histogram(found).tolist()}):"
            " say how many to keep"
        )
    sources: dict[str, Mapping[str, Sequence[str | None]]] = {"voted": there.voted}
    if gold is not None:
        sources["gold"] = _gold_tags(gold, there.user_ids, taxonomy, run)

    def groups(chosen: NDArray[np.bool_]) -> list[Group]:
        each = (
            audit(tags, chosen, source, limit=limit, min_users=min_users) for source, tags in sources.items()
        )
        return sorted((g for part in each for g in part), key=lambda g: (not g.flagged, g.ratio))

    result = Filtered(
        run_id=run,
        shape=shape,
        rule=rule,
        seed=seed,
        calibrators=there.calibrators,
        before=histogram(found).tolist(),
        after=histogram(found[kept]).tolist(),
        groups=groups(kept),
        shapes={
            other: _of_shape(choose(there.user_ids, found, other, seed=seed, keep=keep), groups)
            for other in SHAPES
        },
    )
    if plot:
        _plot(plot_file, result)
    report = {**asdict(result), "proportions": SHAPES[shape], "limit": limit, "min_users": min_users}
    with whole_file(report_file) as file:
        file.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_jsonl(
        out,
        (
            {"user_id": user, "difficulty": int(level)}
            for user, level, stays in zip(there.user_ids, found, kept, strict=True)
            if stays
        ),
    )
    return result


def _of_shape(kept: NDArray[np.bool_], groups: Callable[[NDArray[np.bool_]], list[Group]]) -> dict[str, Any]:
    flagged = [g for g in groups(kept) if g.flagged]
    return {
        "kept": int(kept.sum()),
        "flagged": [
            {"source": g.source, "attribute": g.attribute, "tag": g.tag, "ratio": g.ratio} for g in flagged
        ],
    }


def load_users(
    store: TraceStore, run_id: str, taxonomy: Taxonomy, only: Collection[str] | None = None
) -> Users:
    """The users of a run with votes, in order of arrival. Raises `StoreError` where none has any."""
    profiles = [
        (record_id, profile)
        for record_id, profile in store.profiles(run_id)
        if only is None or profile.user_id in only
    ]
    if not profiles:
        raise StoreError(f"run {run_id} holds no votes to filter by: profile its users to the end first")
    levels = np.zeros((len(profiles), len(taxonomy.names)), np.int64)
    voted: dict[str, list[str | None]] = {name: [] for name in taxonomy.names}
    for row, (_, profile) in enumerate(profiles):
        for column, name in enumerate(taxonomy.names):
            value = profile[name]
            failed = value.status is Status.FAILED
            levels[row, column] = 0 if failed else value.confidence
            voted[name].append(None if failed else value.voted)
    labels = sorted({profile.calibrator for _, profile in profiles})
    return Users([profile.user_id for _, profile in profiles], levels, voted, labels)


def _gold_tags(
    gold: Gold, user_ids: Sequence[str], taxonomy: Taxonomy, run_id: str
) -> dict[str, list[str | None]]:
    if not any(user in gold for user in user_ids):
        raise InputError(f"none of the {len(gold)} gold users is in run {run_id}")
    tags: dict[str, list[str | None]] = {}
    for attribute in taxonomy.attributes:
        said = [gold.get(user, {}).get(attribute.name) for user in user_ids]
        for user, text in zip(user_ids, said, strict=True):
            if text is not None and attribute.match_tag(text) is None:
                raise InputError(
                    f"gold of user {user!r}: {text!r} is no tag of {attribute.name}:"
                    f" expected {', '.join(attribute.names)}"
                )
        tags[attribute.name] = [None if text is None else attribute.match_tag(text) for text in said]
    return tags


def _plot(path: Path, result: Filtered) -> None:
    """Users by level, before and after."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = np.array(CONFIDENCE_LEVELS)
    for offset, name, counts in ((-0.2, "before", result.before), (0.2, "after", result.after)):
        bars = axes.bar(places + offset, counts, width=0.4, label=f"{name} ({sum(counts):,} users)")
        axes.bar_label(bars, fontsize=8)
    axes.set_xticks(places)
    axes.set_xlabel(f"confidence of a user ({result.rule} over attributes)")
    axes.set_ylabel("users")
    axes.set_title(f"run {result.run_id}, shape {result.shape}")
    axes.legend()
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=120, format="png")
    os.replace(partial, path)
