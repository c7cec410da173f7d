"""Names that stages, files and stores agree on: files and metadata of the exported model, tags of MLflow runs."""

from typing import Literal

IMAGE = "image"
PROBABILITIES = "probabilities"
LOGITS = "logits"

MEAN = "deployable.mean"
"""The constant that holds the channel means, in 0..1 units; the negative control of verification shifts it."""

UNVERIFIED = "model.unverified.onnx"
VERIFIED = "model.onnx"
VERIFICATION = "verification.json"
MODEL_CARD = "model_card.md"
IMAGES = "images.parquet"
BASELINE = "baseline.json"
INT8 = "model.int8.onnx"
FP32 = "model.fp32.onnx"
"""The verified float32 graph where `model.onnx` is its INT8 copy (`export.serve: int8`)."""
FP16 = "model.fp16.onnx"
COPIES = (INT8, FP32, FP16)
"""The same network in another arithmetic; only what `export` is asked for exists."""
GOLDEN = "golden"
"""Folder of test images with the probabilities that the model must answer."""
GOLDEN_FACTS = "golden.json"
BOM = "bom.json"
"""Bill of materials: model, data, packages, figures (CycloneDX)."""
SIGNATURE = "model.sig"
BESIDE = (VERIFICATION, MODEL_CARD, IMAGES, BASELINE, BOM, *COPIES, GOLDEN, SIGNATURE)
"""Files and folders that belong to a verified model and travel with it; those that an earlier Convoy logged have fewer."""

PRECISION = "convoy.precision"
"""Arithmetic of the network inside: absent for float32."""

CLASSES = "convoy.classes"
IMAGE_PX = "convoy.image_px"
FIT = "convoy.fit"
CROP_SHARE = "convoy.crop_share"
"""Share of the centre square's side that `fit: crop` keeps; absent where it is all of it."""
VERSION = "convoy.version"
INPUT = "convoy.input"

IdentityKey = Literal["run_id", "git_commit", "data_hash", "params_hash"]
IDENTITY: tuple[IdentityKey, ...] = ("run_id", "git_commit", "data_hash", "params_hash")
"""Names where a model comes from; each is stored as `convoy.<name>`."""

BACKGROUND = "convoy.background"
"""Colour that transparent pixels are composited over; absent in models of earlier versions: `DEFAULT_BACKGROUND`."""
DEFAULT_BACKGROUND = "white"
BACKGROUND_PATTERN = r"^(white|black|#[0-9a-fA-F]{6})$"


def input_in_words(background: str) -> str:
    """Describe the pixels that an exported model takes."""
    return (
        "uint8 pixels [N, height, width, 3] in 0..255, sRGB (ICC profiles converted), upright (EXIF orientation applied), "
        f"transparency over {background}; any N, height and width from 1. Resizing, cropping or padding, and normalisation "
        "happen inside."
    )


RUN_ID = "convoy.run_id"
"""Tag of an MLflow run, and metadata key of an ONNX file: Convoy's own id of the run."""
DATA = "convoy.data"
"""Tag of the delivery for people: its name and the start of its hash."""
AUGMENTATION = "convoy.augmentation"
"""Tag of a run: its augmentation, every argument spelled out."""
THREADS = "convoy.threads"
"""Tag of a run: the number of threads that it was trained with on a CPU, and why if they are fewer than its cores."""
TEACHER = "convoy.teacher"
"""Tag of a run that a trained model taught: its network, the source that was pinned, and a digest of its files."""
DATA_HASH = "convoy.data_hash"
PARAMS_HASH = "convoy.params_hash"
DATA_MD5 = "convoy.data_md5"
LOCK = "convoy.lock"
"""Tag of a run: SHA-256 of its final dvc.lock."""
DVC_EXPERIMENT = "convoy.dvc_experiment"
GIT_COMMIT = "mlflow.source.git.commit"
GIT_DIRTY = "convoy.git_dirty"
GIT_UNKNOWN = "convoy.git_unknown"
"""Tag of a run without a commit: why git named none."""
NEW_FILES = "convoy.new_files"
"""Tag of files that git does not track and whose content the run does not record."""
DIFF = "convoy.diff"
TRAINING = "convoy.training"
HOST = "convoy.host"
OWNER = "convoy.owner"
KIND = "convoy.kind"
ONNX_SHA256 = "convoy.onnx_sha256"
VERDICT = "gate.verdict"
"""Tag of a registered version: the latest verdict of the gate."""
MEASURED_ON = "convoy.measured_on"
"""Tag of a registered version: the split that its accuracy was measured on, `val` where there were no test images; absent for test."""
STAGE = "convoy.stage"
"""Tag of a run: the stage that writes to it, such as `train running` or `train done`."""
INPUTS_CHANGED = "convoy.inputs_changed"
"""Tag of a run that ended because a stage's inputs were edited while it ran: what differs; `no` once it continued."""
INCOMPLETE = "convoy.incomplete"
"""Tag of a run that ended well, but whose outbox did not take all of it: the cause."""
HEARTBEAT = "convoy.heartbeat"
"""Tag of a run: when its uploader last confirmed that it is being written."""
CONTINUES = "convoy.continues"
"""Tag of a run that `mlflow run` opened: Convoy's id of the earlier run that was resumed instead."""
RETRAIN_INPUTS = "convoy.retrain_inputs"
"""Tag of a version that a round judged: digest of all inputs of the round."""
RETRAIN_SOURCE = "convoy.retrain_source"
"""Tag of such a version: fingerprint of the data's source."""
WEIGHTS = "weights.pt"
FACTS = "model.json"
"""File beside the weights: everything else that rebuilds a trained network."""

Tta = Literal["none", "flip", "views"]
"""Views of an image that a model averages; `views` are those of models/views.py."""
