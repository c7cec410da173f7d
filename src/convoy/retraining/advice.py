"""What a report says first, and last: how the round ended for who serves, and what to do next."""

from convoy.retraining.escaped import code
from convoy.retraining.facts import Facts


def title(facts: Facts) -> str:
    """Say how the round ended, as Markdown."""
    mine = code(facts.identity.version) or "the candidate"
    match facts.outcome:
        case "promoted":
            after = f", after {code(facts.champion_before)}" if facts.champion_before else ""
            return f"Promoted: {mine} is the champion{after}"
        case "kept":
            return f"Kept: {code(facts.champion) or 'nothing'} stays champion"
        case "refused":
            return f"Refused: {mine} breaks the gate's limits"
        case "nothing-new":
            return "Nothing new: nothing was trained"
        case "skipped":
            return "Skipped: another round runs"
        case "failed" | "paused":
            where = f" in step {code(facts.incomplete_step)}" if facts.incomplete_step else ""
            return f"{facts.outcome.capitalize()}{where}"


def serving(facts: Facts) -> str:
    """Say which version serves after the round, as Markdown."""
    if not facts.champion:
        if facts.outcome in ("failed", "paused", "skipped"):  # the registry may not have been asked yet
            return "No alias was moved: whatever served before goes on serving."
        return "There is no champion: nothing was served before, and nothing is now."
    if facts.champion == facts.champion_before:
        return f"{code(facts.champion)} goes on serving, as before."
    before = f" {code(facts.champion_before)} served before." if facts.champion_before else ""
    return f"{code(facts.champion)} serves now.{before}"


def next_steps(facts: Facts) -> list[str]:
    """Say what to do next, as Markdown; what the round itself knows comes first."""
    return [*facts.hints, *_usual(facts)]


def _usual(facts: Facts) -> list[str]:  # noqa: PLR0911 (one per outcome)
    branch = facts.identity.branch
    match facts.outcome:
        case "promoted":
            return [
                f"Merge {code(branch)}, so that `dvc.lock` on the main branch names what serves."
                if branch
                else "Commit `data.dvc` and `dvc.lock`, so that the main branch names what serves.",
                "To go back to the champion before: `convoy rollback`"
                if facts.champion_before
                else "This is the first champion: the next round is judged against it.",
            ]
        case "kept":
            return [
                "Nothing has to be done.",
                *_kept_branch(branch),
                'To promote it all the same: `convoy promote --override "reason"`',
            ]
        case "refused":
            return [
                *_labels(facts),
                "Look at what was breached above; where the data are wrong, mend them at their source: the next round takes them.",
                *_kept_branch(branch),
                'Where the candidate is right and the limit wrong: change the limit in `params.yaml`, section `gate`, or `convoy promote --override "reason"`',
            ]
        case "nothing-new":
            return ["Nothing has to be done: the next round looks again."]
        case "skipped":
            return ["Nothing has to be done: the round that runs writes its own report."]
        case "paused":
            return [f"Nothing to fix: the next round resumes. To start it now: `{_again(facts)}`"]
        case "failed":
            return [
                f"Fix the cause named above, then run `{_again(facts)}`; computed results come from the cache.",
                *_kept_branch(facts.identity.branch),
            ]


def _again(facts: Facts) -> str:
    return "PUSH=1 make retrain" if facts.push else "make retrain"


def _labels(facts: Facts) -> list[str]:
    if facts.changes is None or not facts.changes.relabelled:
        return []
    return ["Compare the labels that changed with the images, under *Data* above: were they meant to change?"]


def _kept_branch(branch: str) -> list[str]:
    return [f"What was made is on the branch {code(branch)}."] if branch else []
