"""Packed datasets; among them 72 noisy squares of 8 px in which one channel is brighter: the channel is the class."""

import numpy as np

from convoy.core import files

SPLITS = {"train": [0, 48], "val": [48, 60], "test": [60, 72]}
CLASSES = ["blue", "green", "red"]
PX = 8


def write_packed(folder, images_u8, labels, splits, classes) -> None:
    """Write a dataset as `prepare` does, without a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {
        split: {name: int((labels[start:stop] == label).sum()) for label, name in enumerate(classes)}
        for split, (start, stop) in splits.items()
    }
    pixels = images_u8[slice(*splits["train"])] / 255
    facts = {"classes": classes, "image_px": images_u8.shape[1], "fit": "squash", "hash": "0" * 64}
    facts |= {name: getattr(pixels, name)(axis=(0, 1, 2)).tolist() for name in ("mean", "std")}
    files.write_json(folder / "dataset.json", facts | {"splits": splits, "counts": counts})
    (folder / "images").mkdir(exist_ok=True)
    for split, (start, stop) in splits.items():
        np.save(folder / "images" / f"{split}.npy", images_u8[start:stop])
    np.save(folder / "labels.npy", labels.astype(np.int64))


def write_squares(folder) -> None:
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(stop - start) % 3 for start, stop in SPLITS.values()])
    images_u8 = random.integers(0, 160, size=(len(labels), PX, PX, 3), dtype=np.uint8)
    images_u8[np.arange(len(labels)), :, :, 2 - labels] += 60
    write_packed(folder, images_u8, labels, SPLITS, CLASSES)


def write_small_images(folder, px) -> dict[str, tuple[int, int]]:
    """Write 50 random images of 3 classes, 30 of them for training; return the rows of the splits."""
    splits = {"train": (0, 30), "val": (30, 40), "test": (40, 50)}
    images_u8 = np.random.default_rng(1).integers(0, 256, (50, px, px, 3), np.uint8)
    write_packed(folder, images_u8, np.arange(50) % 3, splits, CLASSES)
    return splits
