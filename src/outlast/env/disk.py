"""On which kind of file system a folder lies."""

from __future__ import annotations

from pathlib import Path

MOUNTS = Path("/proc/mounts")


def file_system(folder: Path, mounts: Path = MOUNTS) -> str:
    """Its type as the kernel names it ('ext4', 'nfs4', 'fuse.sshfs'); '' where that can't be known."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
        here = folder.resolve()
    except OSError:
        return ""
    found = ("", "")
    for line in lines:
        _, place, kind, *_ = [*line.split(" "), "", "", ""]
        place = place.replace("\\040", " ")
        if place and here.is_relative_to(place) and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1]
