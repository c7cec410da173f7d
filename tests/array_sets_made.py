"""Miniatures of published array sets, written as their publishers wrote them."""

import gzip
import io
import json
import pickle
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ["airplane", "cat/dog", "frog"]
"""Class names, with a slash as in Fashion-MNIST's `T-shirt/top`."""


def pictures(count, px=32, seed=0, channels=3):
    shape = (count, px, px, channels) if channels > 1 else (count, px, px)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(image_u8):
    stream = io.BytesIO()
    Image.fromarray(image_u8).save(stream, format="PNG")
    return stream.getvalue()


def planes(images_u8):
    """CIFAR's rows: red, green and blue planes."""
    return np.ascontiguousarray(images_u8.transpose(0, 3, 1, 2)).reshape(len(images_u8), -1)


def python2(value):
    """Pickle as Python 2 with protocol 2 did: text as bytes, numpy's array by `_reconstruct`."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value):
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, np.ndarray):
        shape = b"".join(map(_python2, value.shape))
        dtype = b"cnumpy\ndtype\n" + _python2("u1") + b"K\x00K\x01\x87R"
        dtype += b"(K\x03" + _python2("|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
        start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + _python2("b") + b"\x87R"
        return start + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"
    if isinstance(value, int):
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)
    content = value.encode() if isinstance(value, str) else value
    return (
        b"U" + bytes([len(content)]) if len(content) < 256 else b"T" + struct.pack("<I", len(content))
    ) + content


def batch(images_u8, labels, key="labels"):
    return {
        "batch_label": "a batch",
        key: labels,
        "data": planes(images_u8),
        "filenames": ["x.png"] * len(labels),
    }


def cifar_pickles(train, test, names=NAMES, dump=python2):
    """CIFAR-10 in two training batches; `train` and `test` are images and labels."""
    half = len(train[1]) // 2
    folder = "cifar-10-batches-py"
    return {
        f"{folder}/data_batch_1": dump(batch(train[0][:half], train[1][:half])),
        f"{folder}/readme.html": b"<html></html>",
        f"{folder}/data_batch_2": dump(batch(train[0][half:], train[1][half:])),
        f"{folder}/test_batch": dump(batch(*test)),
        f"{folder}/batches.meta": dump({"num_cases_per_batch": half, "label_names": names, "num_vis": 3072}),
    }


def cifar_100_pickles(train, test, names=NAMES):
    meta = {"fine_label_names": names, "coarse_label_names": ["thing"]}
    files = {"meta": meta, "train": batch(*train, "fine_labels"), "test": batch(*test, "fine_labels")}
    return {f"cifar-100-python/{name}": python2(value) for name, value in files.items()}


def cifar_binary(train, test, names=NAMES):
    half = len(train[1]) // 2
    parts = {
        "data_batch_1": (train[0][:half], train[1][:half]),
        "data_batch_2": (train[0][half:], train[1][half:]),
        "test_batch": test,
    }
    files = {f"cifar-10-batches-bin/{name}.bin": _records(*part, b"") for name, part in parts.items()}
    return files | {"cifar-10-batches-bin/batches.meta.txt": "\n".join([*names, ""]).encode()}


def cifar_100_binary(train, test, names=NAMES):
    files = {
        f"cifar-100-binary/{name}.bin": _records(*part, b"\0")
        for name, part in (("train", train), ("test", test))
    }
    return files | {"cifar-100-binary/fine_label_names.txt": "\n".join(names).encode()}


def _records(images_u8, labels, before):
    rows = planes(images_u8)
    return b"".join(before + bytes([label]) + row.tobytes() for label, row in zip(labels, rows, strict=True))


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist(train, test, *, gz=True, prefix="", parts=("train", "t10k")):
    files = {}
    for part, (images_u8, labels) in zip(parts, (train, test), strict=True):
        files[f"{prefix}{part}-images-idx3-ubyte"] = idx(images_u8)
        files[f"{prefix}{part}-labels-idx1-ubyte"] = idx(np.array(labels, np.uint8))
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()} if gz else files


def npz(train, test):
    arrays = {"x_train": train[0], "y_train": train[1], "x_test": test[0], "y_test": test[1]}
    stream = io.BytesIO()
    np.savez(stream, **{name: np.asarray(array, np.uint8) for name, array in arrays.items()})
    return stream.getvalue()


def parquet(images, labels, names=NAMES, *, as_bytes=False, label="label", **options):
    """A file as Hugging Face's `datasets` writes it."""
    column = [
        content if as_bytes else {"bytes": content, "path": f"{n}.png"} for n, content in enumerate(images)
    ]
    table = pa.table({"image": column, label: labels} if labels is not None else {"image": column})
    features = {"image": {"_type": "Image"}}
    if names:
        features[label] = {"names": names, "_type": "ClassLabel"}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(described), stream, **options)
    return stream.getvalue()


def webdataset(samples):
    """A tar of samples: key to kinds of files with their contents."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for key, files in samples.items():
            for kind, content in files.items():
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def python3(value):
    return pickle.dumps(value, protocol=4)
