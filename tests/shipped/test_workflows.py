"""What CI runs: files that their forges understand, which call make targets and nothing else."""

import os
import re
import shlex
import subprocess
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import check_jsonschema
import pytest
from click.testing import CliRunner, Result

from convoy.core import yaml

CI, RETRAIN, GITLAB = ".github/workflows/ci.yml", ".github/workflows/retrain.yml", ".gitlab-ci.yml"
FILES = (CI, RETRAIN, GITLAB)

CHECKOUT = "de0fac2e4500dabe0009e67214ff5f5447ce83dd"
CONTEXTS = {"github", "inputs", "matrix", "runner", "secrets", "steps", "vars"}
NO_JOB = {"stages", "default", "variables", "workflow", "include", "spec", "image", "cache"}


def targets(repository: Path) -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (repository / "Makefile").read_text(), re.MULTILINE))


def jobs(text: str) -> dict[str, dict[str, Any]]:
    """Map the names of jobs to them, on either forge; GitLab's with what they extend."""
    content = yaml.load(text)
    if "jobs" in content:
        return dict(content["jobs"])
    whole = {name: job for name, job in content.items() if isinstance(job, dict) and name not in NO_JOB}
    return {
        name: whole.get(job.get("extends"), {}) | job
        for name, job in whole.items()
        if not name.startswith(".")
    }


def commands(job: dict[str, Any]) -> list[str]:
    steps = [step["run"] for step in job.get("steps", ()) if "run" in step]
    return [
        *steps,
        *(line for key in ("before_script", "script", "after_script") for line in job.get(key, ())),
    ]


def loose_ends(text: str) -> list[str]:
    """List what no schema can tell: jobs and stages that are not there, actions of no version, wrong expressions."""
    content, own = yaml.load(text), jobs(text)
    found = []
    for name, job in own.items():
        needs = job.get("needs", [])
        found += [
            f"{name} needs {one}" for one in ([needs] if isinstance(needs, str) else needs) if one not in own
        ]
        found += [f"{name} has no stage"] * (job.get("stage") not in content.get("stages", [None]))
        used = [step["uses"] for step in job.get("steps", ()) if "uses" in step]
        found += [one for one in used if not re.fullmatch(r"actions/[\w/-]+@[0-9a-f]{40}", one)]
    return found + (wrong_expressions(text) if "jobs" in content else [])


def wrong_expressions(text: str) -> list[str]:
    """List names in GitHub's expressions that stand for nothing, and expressions that never end."""
    own, on = jobs(text).values(), yaml.load(text)["on"]
    declared = {
        "inputs": set((on.get("workflow_dispatch") or {}).get("inputs", ())),
        "matrix": {key for job in own for key in job.get("strategy", {}).get("matrix", ())},
        "steps": {step["id"] for job in own for step in job["steps"] if "id" in step},
    }
    conditions = re.findall(r"^ +if: (?!.*\$\{\{)(.*)$", text, re.MULTILINE)
    found = []
    for expression in [*re.findall(r"\$\{\{(.*)", text), *conditions]:
        inside, end, _ = expression.partition("}}")
        found += ["${{"] * (not end and expression not in conditions)
        for root, name in re.findall(r"(?<![.\w])([a-z]\w*)\.([\w-]+)", re.sub(r"'[^']*'", "", inside)):
            found += [f"{root}.{name}"] * (root not in CONTEXTS or name not in declared.get(root, {name}))
    return found


def checked(path: Path, name: str) -> Result:
    """Hold a file to the forge's schema, which the checker brings along."""
    schema = "vendor.gitlab-ci" if name == GITLAB else "vendor.github-workflows"
    return CliRunner().invoke(check_jsonschema.main, ["--builtin-schema", schema, str(path)])


@pytest.mark.parametrize("name", FILES)
def test_a_workflow_is_what_its_forge_understands(repository, name):
    done = checked(repository / name, name)
    assert done.exit_code == 0, done.output
    assert loose_ends((repository / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (RETRAIN, "    runs-on:", "    run-on:", "'runs-on' is a required property"),
        (CI, "  cancel-in-progress: true", "  cancel: true", "$.concurrency"),
        (GITLAB, "  tags: [", "  tag: [", "'tag' was unexpected"),
    ],
)
def test_a_fault_of_form_is_found(repository, tmp_path, name, old, new, said):
    text = (repository / name).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "wrong.yml").write_text(text.replace(old, new), encoding="utf-8")
    done = checked(tmp_path / "wrong.yml", name)
    assert done.exit_code == 1
    assert said in done.output


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (RETRAIN, "    runs-on:", "    needs: test\n    runs-on:", "retrain needs test"),
        (RETRAIN, f"actions/checkout@{CHECKOUT}", "actions/checkout@main", "actions/checkout@main"),
        (RETRAIN, f"actions/checkout@{CHECKOUT}", "actions/checkout@v6", "actions/checkout@v6"),
        (RETRAIN, "inputs.runner", "inputs.label", "inputs.label"),
        (RETRAIN, "vars.AWS_ENDPOINT_URL }}", "vars.AWS_ENDPOINT_URL }", "${{"),
        (RETRAIN, "secrets.MLFLOW_TRACKING_TOKEN", "secret.MLFLOW_TRACKING_TOKEN", "secret.MLFLOW_TRACKING_TOKEN"),
        (CI, "${{ matrix.os }}", "${{ matrix.system }}", "matrix.system"),
        (GITLAB, "stage: test", "stage: tests", "ci has no stage"),
        (GITLAB, "  stage: test", "  stage: test\n  needs: [lint]", "ci needs lint"),
    ],
)  # fmt: skip
def test_a_name_that_stands_for_nothing_is_found(repository, name, old, new, said):
    text = (repository / name).read_text(encoding="utf-8")
    assert old in text
    assert said in loose_ends(text.replace(old, new))


@pytest.mark.parametrize("name", FILES)
def test_a_workflow_calls_make_targets_that_exist_and_nothing_else(repository, name):
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    for job in jobs((repository / name).read_text(encoding="utf-8")).values():
        assert commands(job)
        for command in commands(job):
            program, target, *settings = shlex.split(command)
            assert program == "make"
            assert target in targets(repository)
            for setting in settings:
                key = setting.partition("=")[0]
                assert key == "PUSH" or f"{key} ?=" in makefile, f"{name}: {setting}"


def test_both_forges_do_the_same(repository):
    ci, retrain, gitlab = (jobs((repository / name).read_text(encoding="utf-8")) for name in FILES)
    assert commands(ci["test"]) == commands(gitlab["ci"])
    assert "make test" in (repository / ".ci/run").read_text(encoding="utf-8")
    # On a runner of its own label or on the forge's: the same job.
    assert (
        commands(retrain["retrain"]) == commands(gitlab["retrain"]) == commands(gitlab["retrain-on-runner"])
    )


def test_a_round_comes_every_night_by_hand_and_when_data_come(repository):
    content = yaml.load((repository / RETRAIN).read_text())
    [night] = content["on"]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", night["cron"])
    assert content["on"].keys() == {"schedule", "workflow_dispatch", "repository_dispatch"}
    assert content["permissions"] == {"contents": "write", "pull-requests": "write"}
    gitlab = jobs((repository / GITLAB).read_text())
    asked = [rule["if"] for name in ("retrain", "retrain-on-runner") for rule in gitlab[name]["rules"]]
    assert [rule.split("=~ ")[1] for rule in asked if "=~" in rule] == ["/^(schedule|web|trigger|api)$/"] * 2


def test_on_gitlab_a_round_pushes_with_the_token_of_the_project(repository, tmp_path):
    project = {
        "CI_SERVER_PROTOCOL": "https",
        "CI_SERVER_FQDN": "gitlab.example.org",
        "CI_PROJECT_PATH": "vision/photos",
        "RETRAIN_TOKEN": "secret",
    }
    variables = jobs((repository / GITLAB).read_text())["retrain"]["variables"]
    env = {name: Template(str(text)).substitute(project) for name, text in variables.items()}
    git = partial(subprocess.run, cwd=tmp_path, check=True, capture_output=True, text=True)
    git(["git", "init", "-q"])
    git(
        ["git", "remote", "add", "origin", "https://gitlab-ci-token:job@gitlab.example.org/vision/photos.git"]
    )
    asked = git(["git", "remote", "get-url", "--push", "origin"], env=env | {"PATH": os.environ["PATH"]})
    assert asked.stdout.strip() == "https://retrain:secret@gitlab.example.org/vision/photos.git"


def test_a_round_is_never_cancelled_by_the_next(repository):
    concurrency = yaml.load((repository / RETRAIN).read_text())["concurrency"]
    assert concurrency == {"group": "retrain", "cancel-in-progress": False}
    for name in ("retrain", "retrain-on-runner"):
        job = jobs((repository / GITLAB).read_text())[name]
        assert (job["resource_group"], job["interruptible"]) == ("retrain", False)


def test_what_a_round_leaves_is_kept_when_it_fails_or_takes_too_long(repository):
    job = jobs((repository / RETRAIN).read_text())["retrain"]
    at = next(place for place, step in enumerate(job["steps"]) if "make retrain" in step.get("run", ""))
    before, after = job["steps"][:at], job["steps"][at + 1 :]
    restored = {step["with"]["path"] for step in before if "cache/restore" in step.get("uses", "")}
    saved = {step["with"]["path"] for step in after if "cache/save" in step["uses"]}
    assert restored == saved == {"checkpoints\noutbox\n"}, "no data: pull requests from forks read caches"
    assert all(step["if"].startswith("always()") for step in after)
    assert job["steps"][at]["timeout-minutes"] + 20 <= job["timeout-minutes"] <= 360, (
        "GitHub ends jobs at 6 hours"
    )

    job = jobs((repository / GITLAB).read_text())["retrain"]
    kept = {path: cache.get("when") for cache in job["cache"] for path in cache["paths"]}
    assert {path for path, when in kept.items() if when == "always"} == {"checkpoints", "outbox"}
    assert job["artifacts"]["when"] == "always"
    assert job["artifacts"]["paths"] == ["build/retrain"]


def test_what_ci_keeps_is_nothing_that_git_would_see(repository):
    cached = [
        *(path for path in yaml.load((repository / GITLAB).read_text())[".packages"]["paths"]),
        *(
            path
            for cache in jobs((repository / GITLAB).read_text())["retrain"]["cache"]
            for path in cache["paths"]
        ),
    ]
    assert {".cache/pip", "checkpoints", "outbox"} == set(cached)
    for path in cached:
        asked = ["git", "check-ignore", "--quiet", f"{path}/file"]
        assert subprocess.run(asked, cwd=repository, check=False).returncode == 0, path


def test_the_page_names_every_secret_and_variable_that_a_round_reads(repository):
    page = (repository / "docs/retraining.md").read_text(encoding="utf-8")
    read = set(re.findall(r"(?:secrets|vars)\.(\w+)", (repository / RETRAIN).read_text()))
    read |= set(re.findall(r"\$(RETRAIN_\w+)", (repository / GITLAB).read_text()))
    assert {"MLFLOW_TRACKING_URI", "RETRAIN_TOKEN", "RETRAIN_RUNNER"} <= read
    assert not [name for name in sorted(read) if f"`{name}`" not in page]


@pytest.mark.parametrize("name", [CI, RETRAIN])
def test_actions_are_pinned_by_commit_with_their_version_and_leave_no_token_in_the_clone(repository, name):
    text = (repository / name).read_text(encoding="utf-8")
    uses = re.findall(r"uses: (.*)", text)
    assert uses
    for line in uses:
        assert re.fullmatch(r"actions/[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", line), line
    for job in jobs(text).values():
        [checkout] = [step for step in job["steps"] if "actions/checkout" in step.get("uses", "")]
        assert checkout["with"]["persist-credentials"] is False
        assert "token" not in checkout["with"]


def test_secrets_are_in_no_step_but_the_round_s_and_not_in_the_installation(repository):
    content = yaml.load((repository / RETRAIN).read_text(encoding="utf-8"))
    job = content["jobs"]["retrain"]
    assert "env" not in content
    assert "env" not in job
    secret = [step for step in job["steps"] if re.search(r"secrets\.|github\.token", str(step))]
    assert [step["run"].split()[:2] for step in secret] == [["make", "retrain"]]
    runs = [step["run"].split()[1] for step in job["steps"] if "run" in step]
    assert runs == ["environment", "retrain"], "packages are installed before"


def test_a_push_gets_its_token_from_the_environment_and_stores_it_nowhere(repository, tmp_path):
    [step] = [step for step in jobs((repository / RETRAIN).read_text())["retrain"]["steps"] if "env" in step]
    env = {key: str(text) for key, text in step["env"].items() if key.startswith("GIT_CONFIG_")}
    env |= {
        "GH_TOKEN": "s3cret",
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
    }
    command = ["git", "credential", "fill"]
    asked = "protocol=https\nhost=github.example.org\n\n"
    done = subprocess.run(command, input=asked, env=env, check=True, capture_output=True, text=True)
    assert {"username=x-access-token", "password=s3cret"} <= set(done.stdout.splitlines())
    assert "s3cret" not in "".join(env[key] for key in env if key != "GH_TOKEN")


def test_packages_are_installed_without_credentials(repository, tmp_path):
    (tmp_path / "Makefile").write_text(
        (repository / "Makefile").read_text(encoding="utf-8") + "\nshow:\n\t@$(NO_SECRETS) env\n"
    )
    secrets = ("MLFLOW_TRACKING_PASSWORD", "RETRAIN_TOKEN", "AWS_SECRET_ACCESS_KEY", "GIT_CONFIG_VALUE_0")
    env = os.environ | dict.fromkeys(secrets, "s3cret") | {"PIP_INDEX_URL": "https://mirror"}
    done = subprocess.run(["make", "show"], cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
    assert "s3cret" not in done.stdout
    assert "PIP_INDEX_URL=https://mirror" in done.stdout
    installs = re.findall(r"^\t@(.*-m pip install)", (repository / "Makefile").read_text(), re.MULTILINE)
    assert len(installs) == 2
    assert all(line.startswith("$(NO_SECRETS) ") for line in installs)


def test_the_page_has_every_secret_of_gitlab_protected(repository):
    page = (repository / "docs/retraining.md").read_text(encoding="utf-8")
    assert "masked and protected" in page
