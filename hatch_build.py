"""Puts the zoo's cards and the protocols into a standard wheel.

Hatchling's own `force-include` would also copy them into site-packages on an editable install, where the
checkout's folders are meant to be read; so a build hook adds them, and only to a standard build.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

DATA = "robustgen/_data"


def package_data(root: Path) -> dict[str, str]:
    """Map each file that the wheel carries beside the code to its place in the wheel.

    All of attacks/, and of models/ every card; weights only of the digits models, which are small and let a
    fresh install work without a download.
    """
    files = [p for p in (root / "attacks").rglob("*") if p.is_file()]
    for path in (root / "models").rglob("*"):
        is_weights = path.suffix == ".safetensors"
        if path.is_file() and (not is_weights or path.parent.name.endswith("-digits")):
            files.append(path)
    kept = sorted(p for p in files if "__pycache__" not in p.parts)
    return {str(p): f"{DATA}/{p.relative_to(root).as_posix()}" for p in kept}


class PackageData(BuildHookInterface):
    """The build hook that pyproject.toml names."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to a standard wheel; hatchling passes version "editable" for an editable one."""
        if version != "editable":
            build_data["force_include"].update(package_data(Path(self.root)))
