"""The names that the exported graph and its users agree on."""

from typing import Literal

IMAGE = "image"
PROBABILITIES = "probabilities"
LOGITS = "logits"

MEAN = "deployable.mean"
"""The constant that holds the channel means, in 0..1 units; the proof's negative control shifts it."""

UNPROVEN = "model.unproven.onnx"
PROVEN = "model.onnx"
VERIFICATION = "verification.json"
CARD = "model_card.md"
IMAGES = "images.parquet"

CLASSES = "convoy.classes"
IMAGE_PX = "convoy.image_px"
FIT = "convoy.fit"
VERSION = "convoy.version"
INPUT = "convoy.input"

IdentityKey = Literal["run_id", "git_commit", "data_hash", "params_hash"]
IDENTITY: tuple[IdentityKey, ...] = ("run_id", "git_commit", "data_hash", "params_hash")
"""What says where a model comes from; each is stored as `convoy.<name>`."""

INPUT_IN_WORDS = (
    "uint8 pixels [N, height, width, 3] in 0..255, RGB, upright (EXIF orientation applied), transparency over "
    "white; any N, height and width from 1. Resizing, cropping or padding, and normalisation happen inside."
)
