"""Rounds of retraining, and a reader of their reports."""

from markdown_it import MarkdownIt

import gate_results
from convoy.export.image_index import Images
from convoy.retraining import report
from convoy.retraining.data_diff import diff
from convoy.retraining.outcome import Delivery, Identity, RoundRecord, Step

IDENTITY = Identity(
    commit="1" * 40,
    branch="retrain/20261123-221005",
    lock_commit="2" * 40,
    data_md5="3" * 32 + ".dir",
    data_hash="4" * 64,
    params_hash="5" * 64,
    run_id="20261123-221006-9f3c1a",
    mlflow_run_id="6" * 32,
    version="convoy/8",
    onnx_sha256="a" * 64,
    lock_sha256="7" * 64,
)
ENERGY = {"kwh": 0.0024, "co2_kg": 0.0011, "how": "estimated"}
ENERGY |= {"train_kwh": 0.0021, "train_co2_kg": 0.001, "train_how": "estimated"}
DELIVERIES = [
    Delivery("data and models", "s3://team/store"),
    Delivery("pull request", "https://example.org/pull/12"),
    Delivery("branch", why="PUSH=1 was not given; type: git push origin retrain/x"),
]
JOB = "https://example.org/runs/123"


def images(count, names=gate_results.DIGITS, poisoned=()):
    """Make a dataset of images; poisoned classes are labelled as the next one."""

    def label(number):
        name = names[number % len(names)]
        return names[(number + 1) % len(names)] if name in poisoned else name

    return Images({f"{n:064x}": (label(n), "test" if n % 5 == 0 else "train") for n in range(count)})


def round_with(outcome, **values):
    usual = {
        "started": "2026-11-23T22:10:05Z",
        "seconds": 164.2,
        "trigger": "the data changed upstream",
        "source": "https://example.org/digits.zip",
        "champion": "convoy/7",
        "champion_before": "convoy/7",
        "gate_result": gate_results.gate_result(),
        "changes": diff(images(200), images(260)),
        "energy": ENERGY,
        "steps": [Step("look upstream", 1.3, "3 files differ"), Step("repro", 142.7), Step("push", 0.04)],
        "identity": IDENTITY,
        "push": True,
        "deliveries": DELIVERIES,
        "job": JOB,
    }
    return RoundRecord(outcome=outcome, **(usual | values))


def ended_early(outcome, **values):
    """Make a round that ended before anything was trained."""
    nothing = {"trigger": "", "gate_result": None, "changes": None, "energy": {}, "identity": Identity()}
    nothing |= {"deliveries": [], "steps": [Step("look upstream", 1.3)]}
    return round_with(outcome, **(nothing | values))


ROUNDS = {
    "promoted": round_with("promoted", champion="convoy/8"),
    "first": round_with(
        "promoted", champion="convoy/8", champion_before="", gate_result=gate_results.without_champion(), changes=diff(None, images(9)),
    ),
    "kept": round_with("kept", gate_result=gate_results.gate_result(verdict="keep"), changes=diff(images(9), images(9))),
    "refused": round_with(
        "refused",
        gate_result=gate_results.gate_result(
            verdict="refuse",
            criteria=(
                *gate_results.CRITERIA,
                gate_results.criterion("class_drop", figure=0.83, limit=0.2, sense="at most", unit="points", held=False),
            ),
        ),
        changes=diff(images(200), images(200, poisoned=gate_results.DIGITS[:7])),
    ),
    "nothing-new": ended_early("nothing-new", reason="Data, params and code are those of convoy/7."),
    "skipped": ended_early("skipped", reason="Another round runs since 21:00 UTC (process 4711)."),
    "failed": round_with("failed", reason="The remote refused the branch:\n  ! [remote rejected]", log="one\ntwo"),
    "paused": round_with("paused", reason="The time budget is spent."),
    "no champion": round_with("kept", champion="", champion_before=""),
    "failed early": ended_early("failed", reason="MLFLOW_TRACKING_URI is not set.", champion=""),
}  # fmt: skip


class Parsed:
    """Read Markdown as GitHub does: headings, tables by the heading above them, lists, blocks, links."""

    def __init__(self, text):
        parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        self.html = parser.render(text)
        self.heads, self.blocks, self.links, self.images, self.raw = [], [], [], [], []
        self.tables, self.lists, self.paragraphs = {}, {}, {}
        tokens = parser.parse(text)
        for at, token in enumerate(tokens):
            self.block(token, tokens, at)
            for child in token.children or ():
                self.inline(child)

    def block(self, token, tokens, at):
        here = self.heads[-1] if self.heads else ""
        match token.type:
            case "heading_open":
                self.heads.append(self.content(tokens[at + 1]))
            case "fence":
                self.blocks.append(token.content)
            case "html_block":
                self.raw.append(token.content)
            case "table_open":
                self.tables.setdefault(here, []).append([])
            case "tr_open":
                self.tables[here][-1].append([])
            case "th_open" | "td_open":
                self.tables[here][-1][-1].append(self.content(tokens[at + 1]))
            case "inline" if tokens[at - 1].type == "paragraph_open":
                kind = self.lists if tokens[at - 2].type == "list_item_open" else self.paragraphs
                kind.setdefault(here, []).append(self.content(token))

    def inline(self, child):
        match child.type:
            case "link_open":
                self.links.append(child.attrs["href"])
            case "image":
                self.images.append(child.attrs["src"])
            case "html_inline":
                self.raw.append(child.content)

    @staticmethod
    def content(token):
        kinds = {"text", "code_inline", "text_special"}
        return "".join(child.content for child in token.children if child.type in kinds).replace("\u200b", "")


def parse(record):
    return Parsed(report.render(record))
