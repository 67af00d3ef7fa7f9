from __future__ import annotations

import pytest

from ddim_lightning.engine.shipped import find_configs, find_shipped


def test_configs_by_name_and_by_path(tmp_path):
    path = str(find_shipped("configs") / "edit.yaml")
    assert find_configs(["--config", "edit", "--x", "edit"]) == ["--config", path, "--x", "edit"]
    assert find_configs(["-c=edit.yaml"]) == [f"-c={path}"]
    own = tmp_path / "own.yaml"
    own.touch()
    assert find_configs(["--config", str(own)]) == ["--config", str(own)]
    with pytest.raises(FileNotFoundError, match="gone"):
        find_configs(["--config", str(tmp_path / "gone.yaml")])
