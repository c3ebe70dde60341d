"""Files that are there whole or not at all, whatever stops the program."""

from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under another name, then renames it: a file of that name stays as it was until then."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
