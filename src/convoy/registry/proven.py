"""What a proven model's own files say about it, as a registered version carries it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.core import contract, files
from convoy.core.errors import RequestError
from convoy.export.onnx_model import OnnxModel
from convoy.registry import artifacts
from convoy.registry.client import RUN_ID, SHA256

TAG_CHARACTERS = 5000
"""Longest value of a tag that every store of MLflow takes; some take 100,000."""

DESCRIPTION_CHARACTERS = 5000
"""Width of the column for descriptions; PostgreSQL refuses more, sqlite does not."""

CUT = "\n\n(Cut here: a registry takes 5,000 characters. The whole card is `model_card.md` beside the model.)"


@dataclass(frozen=True)
class Proven:
    """Hold a folder with a proven model.

    Attributes:
        folder: has model.onnx, verification.json, model_card.md and images.parquet.
        sha256: of model.onnx.
        proof: content of verification.json.
        classes: names, in the order of the probabilities.
    """

    folder: Path
    sha256: str
    proof: dict[str, Any]
    classes: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "Proven":
        """Read a folder that `export` wrote.

        Raises:
            RequestError: it holds no proven model, with what to type.
            ProofError: the file is no model of Convoy's.
        """
        onnx, proof = folder / contract.VERIFIED, folder / contract.VERIFICATION
        for path in (onnx, proof):
            if not path.is_file():
                raise RequestError(
                    f"{path} does not exist, so there is no proven model to register. Make it: dvc repro "
                    "(or bring it back from DVC's cache: dvc checkout build/deploy; or name a run: convoy register RUN)"
                )
        sha256 = files.sha256(onnx)
        if not artifacts.holds(folder, sha256):
            raise RequestError(
                f"{proof} is not the proof of {onnx} (sha256 {sha256[:12]}): one of them was changed since. Bring both "
                "back: dvc checkout --force build/deploy; or make them again: dvc repro --force export"
            )
        return cls(folder, sha256, files.read_json(proof), OnnxModel(onnx).classes)

    @property
    def run_id(self) -> str:
        """Name the run that exported it, by Convoy's id."""
        return str(self.identity["run_id"])

    @property
    def identity(self) -> dict[str, str]:
        """Say what it comes from: run, commit, data and params."""
        return dict(self.proof["model"]["identity"])

    @property
    def accuracy(self) -> str:
        """Phrase the proven accuracy."""
        low, high = (float(self.proof[f"accuracy_{end}"]) for end in ("low", "high"))
        return f"{self.proof['accuracy']:.2%} ({low:.2%} to {high:.2%})"

    def tags(self) -> dict[str, str]:
        """State as tags where it comes from and what was proven; classes that take too much room are only counted."""
        told = {f"convoy.{key}": text for key, text in self.identity.items()}
        told |= {
            SHA256: self.sha256,
            RUN_ID: self.run_id,
            "convoy.version": str(self.proof["model"]["version"]),
            "convoy.class_count": str(len(self.classes)),
            "convoy.label_flips": str(self.proof["checks"][0]["label_flips"]),
        }
        told |= {
            f"convoy.{name}": str(self.proof[name]) for name in ("accuracy", "accuracy_low", "accuracy_high")
        }
        classes = json.dumps(self.classes, ensure_ascii=False)
        return told | ({contract.CLASSES: classes} if len(classes) <= TAG_CHARACTERS else {})

    def description(self) -> str:
        """Give the model card, cut at the end of a line where it is too long."""
        path = self.folder / contract.MODEL_CARD
        card = path.read_text(encoding="utf-8") if path.is_file() else ""
        if len(card) <= DESCRIPTION_CHARACTERS:
            return card
        kept = card[: DESCRIPTION_CHARACTERS - len(CUT)]
        return kept.rpartition("\n")[0] + CUT
