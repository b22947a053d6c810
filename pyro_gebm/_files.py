"""Files that appear whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, *chunks: bytes | memoryview) -> None:
    """Write bytes beside ``path`` and move them there, so that a part is never in its place.

    A writer that is killed leaves ``.<name>.<process>.part``, to be removed by who owns the folder.

    Raises:
        OSError: the file cannot be written; an older one is as it was.
    """
    # Not tempfile: its files can be read by their owner only, and a checkpoint is to be shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
