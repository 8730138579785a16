"""`winnow evaluate`: what leaves under each policy, at what cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from models.bundles import bundle as bundles
from models.bundles.manifest import Manifest
from models.offline import seed_ranges
from models.zoo.questions import QUESTIONS
from service.cli.common import (
    DEFAULT_CONFIG,
    ConfigFile,
    bars,
    needed_evaluation,
    question,
    read_settings,
    say,
)
from service.config import ConfigError

if TYPE_CHECKING:
    from service.offline.survey import Survey


ROUND = 200
SHEET = 100
"""Images on the sheet for a person: what the oracle trusts least of all that left."""


def evaluate(
    config: ConfigFile = DEFAULT_CONFIG,
    policies: Annotated[
        list[str] | None, typer.Option("--policy", help="Only these; repeat the option.")
    ] = None,
    n: Annotated[int, typer.Option(min=100, help="Images to ask for under each policy.")] = 2000,
    out: Annotated[Path, typer.Option(help="Folder for the table and the picture.")] = Path(
        "build/evaluation"
    ),
    record: Annotated[
        bool, typer.Option("--record", help="Also write the table into the bundle's manifest.")
    ] = False,
) -> None:
    """Generate under each policy and print what leaves: malign rate, cost and fidelity.

    The bundle's oracle says what is malign; it was trained on labels that nothing else saw. Needs
    a policy without a judge, for the images that nobody censored. The oracle errs, too: for each
    policy a sheet shows a person the 100 images that left and that it finds likeliest malign.
    """
    from models.zoo.evaluation.features import load_features
    from models.zoo.evaluation.referees import load_referee
    from models.zoo.evaluation.viewed import grids
    from models.zoo.mnist import sevens
    from service.offline import evaluation_picture
    from service.offline.evaluation_table import PolicyResult, QuestionReference, markdown, render
    from service.offline.survey import merge, survey
    from service.serving.in_process import InProcessService

    settings = read_settings(config)
    open_name = next((k for k, v in settings.policies.items() if v.reward is None), None)
    if open_name is None:
        raise ConfigError("policies: evaluation compares with a policy that has no reward")
    model = settings.policies[open_name].model
    known = [name for name, policy in settings.policies.items() if policy.model == model]
    rewards = {name: settings.policies[name].reward for name in known}
    for name in policies or []:
        if (asked := rewards.get(name)) is not None:
            question(asked)
    # What no referee can answer for, such as an imported judge, is left out.
    chosen = policies or [name for name in known if rewards[name] in (None, *QUESTIONS)]
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"no policy {unknown[0]!r} of {model} (there are {', '.join(known)})")
    data = sevens()
    with InProcessService(settings, model) as service:
        evaluation = needed_evaluation(service.bundle.manifest.evaluation)
        features = load_features(service.bundle.path(evaluation.features)).features

        # Turn and turn about, so that what else the machine does costs all the same.
        parts: dict[str, list[Survey]] = {name: [] for name in [open_name, *chosen]}
        with bars() as start:
            advance = {name: start(name, n) for name in parts}
            for done in range(0, n, ROUND):
                for name, bar in advance.items():
                    first, size = (
                        seed_ranges.first(seed_ranges.EVALUATION) + done,
                        min(ROUND, n - done),
                    )
                    policy = service.policies[name]
                    parts[name].append(survey(service, policy, size, first, None, bar))
        found = {name: merge(surveys) for name, surveys in parts.items()}
        uncensored = found[open_name]

        oracles = {
            reward: load_referee(service.bundle.path(evaluation.oracle), question(reward))
            for reward in service.bundle.manifest.rewards
            if reward in QUESTIONS
        }

        def reference(reward: str) -> QuestionReference:
            benign = ~question(reward).is_malign(data.labels == 1)
            malign = oracles[reward].malign
            return QuestionReference.of(reward, malign, benign, data, uncensored, features)

        references = {reward: reference(reward) for reward in oracles}
        rows: list[PolicyResult] = []
        out.mkdir(parents=True, exist_ok=True)
        for name in chosen:
            reward = settings.policies[name].reward
            if reward is None:
                rows += [reference.row(open_name, uncensored) for reference in references.values()]
                continue
            rows.append(references[reward].row(name, found[name]))
            malign = references[reward].is_malign
            before = evaluation_picture.panel(
                f"{open_name}: malign ones framed", uncensored, malign
            )
            after = evaluation_picture.panel(f"{name}: the same seeds", found[name], malign)
            evaluation_picture.draw([before, after]).save(out / f"{name}.png")
            sent = found[name].pixels[found[name].sent]
            suspects = sent[oracles[reward].likeliest_malign(sent)[:SHEET]]
            grids(suspects)[0].save(out / f"{name}-suspects.png")
    rows.sort(key=lambda row: (row.question, row.policy))
    (out / "table.json").write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
    (out / "table.md").write_text(markdown(rows))
    if record:
        _record(service.bundle.folder, [row.as_dict() for row in rows])
    for table in render(rows):
        Console().print(table)
    error = evaluation.oracle_error["generated"]["oracle"]
    sure = error["viewed"] - error["unsure"]
    say(
        f"The oracle is wrong on {error['errors']} of {sure} generated images that were looked at "
        f"({error['error_rate']:.1%})."
    )
    say(f"Table and pictures: {out}/table.md, {out}/*.png")


def _record(folder: Path, table: list[dict[str, Any]]) -> None:
    """Write rows into the manifest; those of policies that were left out this time stay."""

    def change(manifest: Manifest) -> Manifest:
        evaluation = needed_evaluation(manifest.evaluation)
        rows = {(row["question"], row["policy"]): row for row in [*evaluation.table, *table]}
        merged = evaluation.model_copy(update={"table": [rows[key] for key in sorted(rows)]})
        return manifest.model_copy(update={"evaluation": merged})

    bundles.update_manifest(folder, change)
