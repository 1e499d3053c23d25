"""`bench simulate`: when the weighted vote beats the majority, and when it hurts."""

from __future__ import annotations

from typing import Annotated

import typer

from cp_agents.cli import options as o


def simulate(
    skill: Annotated[
        list[float] | None,
        typer.Option("--skill", help="Share of right answers; may be repeated.", show_default="0.4 0.6 0.8"),
    ] = None,
    skill_of: Annotated[
        list[str] | None,
        typer.Option("--skill-of", help="TAG=SHARE: another skill for users of a tag.", show_default=False),
    ] = None,
    samples: Annotated[
        list[int] | None, typer.Option("--samples", help="M; may be repeated.", show_default="10")
    ] = None,
    correlation: Annotated[
        list[float] | None,
        typer.Option("--correlation", help="Between a user's samples; may be repeated.", show_default="0.2"),
    ] = None,
    na_rate: Annotated[
        list[float] | None,
        typer.Option(
            "--na-rate", help="Share of samples that say NA; may be repeated.", show_default="0 0.3"
        ),
    ] = None,
    na_confidence: Annotated[int, typer.Option("--na-confidence", help="Stated with NA, 1 to 5.")] = 1,
    sharpness: Annotated[
        float, typer.Option("--sharpness", help="How much confidence tells: 0 nothing, 1 a lot.")
    ] = 0.5,
    overconfident: Annotated[
        list[str] | None,
        typer.Option(
            "--overconfident", help="Tag of the overconfident sampler; may be repeated.", show_default="A"
        ),
    ] = None,
    pull: Annotated[
        float,
        typer.Option("--pull", help="Share of the overconfident sampler's wrong answers that name its tag."),
    ] = 0.6,
    tags: Annotated[int, typer.Option("--tags", help="How many there are: A, B, C, ...")] = 5,
    users: Annotated[int, typer.Option("--users", min=1, help="Simulated users.")] = 1000,
    draws: o.Draws = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of users, samples and resamples.")] = 0,
    json_file: o.JsonFile = None,
) -> None:
    """Samplers of known skill and known confidence: when weighted beats majority, and when it hurts.
    Python: `cp_agents.evaluation.simulator`.
    """
    from pydantic import ValidationError

    from cp_agents.bench.render import console, print_grid
    from cp_agents.bench.simulate import simulation_grid
    from cp_agents.errors import InputError
    from cp_agents.evaluation.simulator import Sampler
    from cp_agents.files import check_out, whole_file

    if json_file is not None:
        check_out(json_file)
    try:
        base = Sampler(na_confidence=na_confidence, sharpness=sharpness, skill_of=_shares(skill_of or []))
        grid = simulation_grid(
            base,
            skills=skill or (0.4, 0.6, 0.8),
            samples=samples or (10,),
            correlations=correlation or (0.2,),
            na_rates=na_rate or (0.0, 0.3),
            overconfident=overconfident or ("A",),
            pull=pull,
            tags=tags,
            users=users,
            draws=draws,
            seed=seed,
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"{name}: {first['msg'].lower()}, found {first['input']!r}") from None
    if json_file is not None:
        with whole_file(json_file) as file:
            file.write(grid.model_dump_json(indent=1) + "\n")
    print_grid(console(), grid)


def _shares(words: list[str]) -> dict[str, float]:
    from cp_agents.errors import InputError

    found = {}
    for word in words:
        tag, _, share = word.partition("=")
        try:
            found[tag] = float(share)
        except ValueError:
            raise InputError(f"--skill-of {word}: expected TAG=SHARE, as A=0.3") from None
    return found
