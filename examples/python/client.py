"""Classify images with `convoy serve`: the standard library, no packages.

python client.py http://127.0.0.1:8000 photo.jpg …
python client.py http://127.0.0.1:8000 --golden build/deploy/golden

A token is read from CONVOY_SERVE_TOKEN.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path


def classify(url: str, image: bytes, top_k: int = 5) -> dict:
    """Send an encoded image; return the service's answer.

    Raises:
        RuntimeError: the service refused the image; with its reason.
    """
    headers = {"Content-Type": "application/octet-stream"}
    if token := os.environ.get("CONVOY_SERVE_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"{url.rstrip('/')}/predict?top_k={top_k}", image, headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["error"]["reason"]) from error


def replay(url: str, folder: Path) -> bool:
    """Compare the answers for golden images with the measured ones."""
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    same, largest = 0, 0.0
    for image in golden["images"]:
        answer = classify(url, (folder / image["file"]).read_bytes(), len(golden["classes"]))
        expected = dict(zip(golden["classes"], image["probabilities"], strict=True))
        gap = max(abs(answer["probabilities"][name] - value) for name, value in expected.items())
        same += answer["class"] == image["class"] and gap <= golden["max_probability_gap"]
        largest = max(largest, gap)
    print(
        f"{same} of {len(golden['images'])} golden images as measured, largest probability gap {largest:.1e}"
    )
    return same == len(golden["images"])


def main(url: str, *rest: str) -> int:
    """Run the command line; return the exit code."""
    if rest[0] == "--golden":
        return 0 if replay(url, Path(rest[1])) else 1
    failed = 0
    for name in rest:
        try:
            answer = classify(url, Path(name).read_bytes())
            print(f"{name}: {answer['class']} {answer['probability']:.4f} ({answer['model']})")
        except RuntimeError as error:
            failed += 1
            print(f"{name}: ERROR: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 3 or (sys.argv[2] == "--golden" and len(sys.argv) < 4):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
