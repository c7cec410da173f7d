"""Classify images with model.onnx: onnxruntime, numpy and Pillow, without Convoy.

python classify.py model.onnx photo.jpg …
python classify.py model.onnx --golden build/deploy/golden
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageCms, ImageOps

SRGB = ImageCms.createProfile("sRGB")


def decode(path: Path, background: str) -> np.ndarray:
    """Decode to uint8 (H, W, 3): upright, in sRGB, transparency over the background."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        profile = image.info.get("icc_profile")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image).astype(np.uint32) * 255 // 65535).astype(np.uint8))
        if profile and image.mode in {"RGB", "RGBA", "L", "CMYK"}:
            mode = "RGBA" if image.mode == "RGBA" else "RGB"
            image = ImageCms.profileToProfile(image, io.BytesIO(profile), SRGB, outputMode=mode)
        if image.has_transparency_data:
            above = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", above.size, background), above)
        return np.asarray(image.convert("RGB"))


class Classifier:
    """Hold the model; the file has the names of its classes and its background."""

    def __init__(self, model: str) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.classes = json.loads(metadata["convoy.classes"])
        self.background = metadata.get("convoy.background", "white")

    def __call__(self, path: Path) -> dict[str, float]:
        """Map classes to probabilities."""
        pixels = decode(path, self.background)[np.newaxis]
        (probabilities,) = self.session.run(["probabilities"], {"image": pixels})
        return dict(zip(self.classes, probabilities[0].tolist(), strict=True))


def replay(classify, folder: Path) -> bool:
    """Compare the answers for golden images with the measured ones."""
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    same, largest = 0, 0.0
    for image in golden["images"]:
        answer = classify(folder / image["file"])
        expected = dict(zip(golden["classes"], image["probabilities"], strict=True))
        gap = max(abs(answer[name] - value) for name, value in expected.items())
        same += max(answer, key=answer.get) == image["class"] and gap <= golden["max_probability_gap"]
        largest = max(largest, gap)
    print(
        f"{same} of {len(golden['images'])} golden images as measured, largest probability gap {largest:.1e}"
    )
    return same == len(golden["images"])


def main(model: str, *rest: str) -> int:
    """Run the command line; return the exit code."""
    classify = Classifier(model)
    if rest[0] == "--golden":
        return 0 if replay(classify, Path(rest[1])) else 1
    for name in rest:
        answer = classify(Path(name))
        best = max(answer, key=answer.__getitem__)
        print(f"{name}: {best} {answer[best]:.4f}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3 or (sys.argv[2] == "--golden" and len(sys.argv) < 4):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
