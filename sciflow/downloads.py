"""Files fetched once, each held to its checksum from then on.

A download goes to a temporary file, is compared with its checksum, and only then takes its name.
Where none was published, the SHA-256 of the first download is written down in ``checksums.txt``
beside it, as ``sha256sum`` writes it, and a file that differs later is refused.
"""

from __future__ import annotations

import re
from pathlib import Path

from sciflow.errors import InputError
from sciflow.files import write_atomically

__all__ = ["Downloads"]

_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S+)")


class Downloads:
    """A folder of downloads.

    Args:
        folder: of the files and of ``checksums.txt``; made when there is something to keep.

    Raises:
        InputError: a ``checksums.txt`` that ``sha256sum`` did not write.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.record = self.folder / "checksums.txt"
        self.known: dict[str, str] = {}
        lines = self.record.read_text().splitlines() if self.record.is_file() else []
        for number, line in enumerate(lines, start=1):
            found = _LINE.fullmatch(line)
            if found is None:
                raise InputError("not a line of sha256sum; repair or remove this file",
                                 self.record, number)  # fmt: skip
            self.known[found[2]] = found[1]

    def fetch(self, url: str, name: str, checksum: str = "", progress: bool = False) -> Path:
        """The file of ``url``, downloaded unless it is there with the right checksum.

        Args:
            url: of the file, or of a mirror.
            name: of the file here.
            checksum: SHA-256, or ``algorithm:hex``; default what is on record, if anything.
            progress: show a bar.

        Raises:
            InputError: no connection, or not the file that its checksum names; nothing is kept.
        """
        import pooch

        # pooch reports every unknown checksum on the terminal; they are kept in a file here.
        pooch.get_logger().setLevel("WARNING")
        expected = checksum or self.known.get(name, "")
        if expected and ":" not in expected:
            expected = f"sha256:{expected}"
        try:
            path = pooch.retrieve(url, expected or None, name, self.folder, progressbar=progress)
        except OSError as error:
            raise InputError(
                f"cannot be downloaded ({error}); fetch it elsewhere and put it at "
                f"{self.folder / name}",
                url,
            ) from error
        except ValueError as error:
            why = (
                f"the download has another checksum than the one expected, {expected}"
                if expected
                else f"cannot be downloaded ({error})"
            )
            raise InputError(f"{why}; nothing was kept, try again or give a mirror", url) from error
        self._remember(name, pooch.file_hash(path))
        return Path(path)

    def _remember(self, name: str, sha256: str) -> None:
        if self.known.get(name) != sha256:
            self.known[name] = sha256
            lines = (f"{value}  {file}\n" for file, value in sorted(self.known.items()))
            write_atomically(self.record, "".join(lines))
