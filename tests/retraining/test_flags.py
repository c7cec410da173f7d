"""`pipelines/repro.py` hands DVC's own flags on, and takes no others."""

import shutil
import sys
from pathlib import Path

from clones import Clone


def test_force_and_pull_reach_dvc_and_other_words_do_not(clone: Clone, tmp_path: Path) -> None:
    shutil.copytree(clone.folder, tmp_path / "clone", symlinks=True)
    own = Clone(tmp_path / "clone")
    (tmp_path / "fake/dvc").mkdir(parents=True)
    (tmp_path / "fake/dvc/__init__.py").touch()
    (tmp_path / "fake/dvc/__main__.py").write_text("import sys; print('DVC', *sys.argv[1:]); sys.exit(1)\n")
    path = f"{own.folder / 'src'}:{tmp_path / 'fake'}"
    script = (sys.executable, "pipelines/repro.py")
    said = own.run(*script, "--force", "--until", "train", "--pull", fails=True, PYTHONPATH=path)
    assert "DVC repro --force --pull train\n" in said
    said = own.run(*script, "--dry", fails=True, PYTHONPATH=path)
    assert "'--dry'" in said
