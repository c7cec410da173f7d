"""Functions, methods, properties and classes that nothing in src/ and pipelines/ uses are removed."""

from vulture import Vulture

KINDS = ("function", "method", "property", "class", "import")
DECORATORS = [
    "@*.command*",
    "@*.callback*",
    "@*validator*",
    "@*serializer*",
    "@*.register*",
    "@override",
    "@app.get",
    "@app.post",
]
"""What typer, pydantic, singledispatch and FastAPI call."""
NAMES = [
    "forward",  # torch
    "check_mapping_key",  # ruamel
    "live_out",  # codecarbon
    "PagedList",  # named in a quoted annotation
    "list_commands",  # click
    "collect",  # prometheus_client
    "readinto",  # io
    "load_prepare",  # Pillow
    "redirect_request",  # urllib
    "get_next",  # onnxruntime's calibration
    "_load_pyfunc",  # MLflow
    "on_*", "setup", "*_step", "configure_*", "*_dataloader", "*state_dict", "transfer_batch_to_device",  # Lightning
    "save_checkpoint", "remove_checkpoint",  # Lightning's CheckpointIO
]  # fmt: skip


def test_nothing_is_left_that_no_code_uses(repository):
    sources = repository / "src/convoy"
    vulture = Vulture(ignore_names=NAMES, ignore_decorators=DECORATORS)
    vulture.scavenge([sources, repository / "pipelines"])
    templates = "\n".join(path.read_text(encoding="utf-8") for path in sources.rglob("*.j2"))
    items = vulture.get_unused_code(min_confidence=60)
    assert items, "vulture found no candidates at all: it read nothing"
    dead = [
        f"{item.filename}:{item.first_lineno} {item.typ} {item.name}"
        for item in items
        if item.typ in KINDS and item.name not in templates
    ]
    assert not dead, "\n".join(dead)
