"""Dockerfiles, read instruction by instruction."""

import json
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """A line of a Dockerfile, with the lines that it continues on."""

    name: str
    text: str

    @property
    def words(self):
        """The words of its JSON form."""
        return json.loads(self.text)


def instructions(path):
    text = re.sub(
        r"\\\n", " ", re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    pairs = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return [Instruction(name, rest.strip()) for name, rest in pairs]


def stages(path):
    """Map the name of each stage to its instructions; the arguments before the first stage are under an empty name."""
    found = {"": []}
    for one in instructions(path):
        if one.name == "FROM":
            words = one.text.split()
            found[words[2] if len(words) > 2 else "last"] = []
        found[list(found)[-1]].append(one)
    return found


def only(lines, name):
    return [line for line in lines if line.name == name]
