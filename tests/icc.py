"""ICC profiles, made on the spot, with the primaries and curves of the usual ones."""

import struct

D50 = (0.9642, 1.0, 0.8249)
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
"""XYZ of red, green and blue, adapted to D50: Display P3 (Apple), Adobe RGB (1998)."""


def number(value):
    return struct.pack(">i", round(value * 65536))


def icc(space, gamma, primaries=None):
    """A profile (ICC.1:2001-04) of a gray or RGB space with a power curve per channel."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"wtpt": b"XYZ " + bytes(4) + b"".join(map(number, D50))}
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags[b"cprt"] = b"text" + bytes(4) + b"none\0\0\0\0"
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        for channel, colour in zip("rgb", primaries, strict=True):
            tags[f"{channel}XYZ".encode()] = b"XYZ " + bytes(4) + b"".join(map(number, colour))
            tags[f"{channel}TRC".encode()] = curve
    table, data, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        table += name + struct.pack(">II", at + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    size = 128 + len(table) + len(data)
    header = (
        struct.pack(">I", size) + bytes(4) + bytes([2, 0x40, 0, 0]) + b"mntr" + space + b"XYZ " + bytes(12)
    )
    header += b"acsp" + bytes(28) + b"".join(map(number, D50))
    return header + bytes(128 - len(header)) + table + data


DISPLAY_P3, ADOBE_RGB = icc(b"RGB ", 2.2, P3), icc(b"RGB ", 2.2, ADOBE)
GRAY = icc(b"GRAY", 1.0)


def _cmyk():
    """A printer's profile (ICC.1:2001-04) with a table (lut8) from the 16 corners of CMYK to Lab."""
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    lab = [
        (
            (0 if k else 255 - 60 * (c + m + y)),
            128 + (40 * (m - c) if not k else 0),
            128 + (60 * y if not k else 0),
        )
        for c, m, y, k in corners
    ]
    identity = b"".join(number(n) for n in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity
    table += (
        bytes(range(256)) * 4 + bytes(value for colour in lab for value in colour) + bytes(range(256)) * 3
    )
    profile = bytearray(icc(b"CMYK", 1.0))
    profile[12:16], profile[20:24] = b"prtr", b"Lab "
    at = profile.index(b"kTRC")
    profile[at : at + 12] = b"A2B0" + struct.pack(">II", len(profile), len(table))
    profile += table
    profile[:4] = struct.pack(">I", len(profile))
    return bytes(profile)


CMYK = _cmyk()
