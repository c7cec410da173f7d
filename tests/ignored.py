"""Files of .dvcignore, and whether DVC then leaves out a path."""

IGNORED = {
    ".dvcignore": "*.tmp\n!keep.tmp\n# comment\ncaches/\n/top.txt\ndocs/**/draft.md\nfolder/*\n!folder/kept.py\nwhole\n!whole/kept.py\n",
    "src/.dvcignore": "local.py\n!a.tmp\n/own/\n",
}
VERDICTS = {
    "a.tmp": True, "src/core/b.tmp": True, "keep.tmp": False, "src/a.tmp": False, "src/core/a.tmp": False,
    "data/caches/a/b": True, "caches": False, "top.txt": True, "src/top.txt": False,
    "docs/draft.md": True, "docs/a/b/draft.md": True, "docs/a/b/final.md": False, "other/docs/draft.md": False,
    "folder/a.py": True, "folder/kept.py": False, "whole/kept.py": True, "#": False,
    "src/core/local.py": True, "data/local.py": False, "src/own/a.py": True, "src/core/own/a.py": False,
}  # fmt: skip
