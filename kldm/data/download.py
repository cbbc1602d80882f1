"""Downloads that resume, are verified, and never leave half a file under the final name."""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from kldm.errors import KldmError

TIMEOUT = 30.0
ATTEMPTS = 3
_BLOCK = 2**16


class Interrupted(Exception):
    """The transfer ended early. The part that arrived is kept, and the next attempt goes on from there."""


def blob_id(path: Path) -> str:
    """git's id of a file: sha1 of ``blob <size>``, a zero byte and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def download(url: str, path: Path, blob: str, timeout: float = TIMEOUT) -> Path:
    """Fetch a file and verify it by its git blob id; a ``<path>.part`` that an earlier attempt left is resumed.

    Args:
        url: the address of the file.
        path: the destination; it exists only once the file is complete and verified.
        blob: the git blob id of the file.
        timeout: seconds without a byte after which a transfer counts as interrupted.

    Raises:
        KldmError: the server cannot be reached or lacks the file; the transfer keeps ending early (the part that
            arrived is kept for the next attempt); or the content is not the published one (it is removed).
    """
    by_hand = f"get {path.name} from {url} and put it into {path.parent}"
    part = path.with_name(path.name + ".part")
    problem = ""
    for _ in range(ATTEMPTS):
        resumed = part.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _transfer(url, part, timeout)
        except Interrupted as error:
            problem = f"the download of {url} keeps ending early ({error})"
            continue
        except urllib.error.HTTPError as error:
            raise KldmError(f"the server does not give {url} (HTTP status {error.code})", remedy=by_hand) from None
        except urllib.error.URLError as error:
            raise KldmError(f"{url} cannot be reached ({error.reason})", remedy=by_hand) from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a header that is no number
            reason = str(error).strip() or type(error).__name__
            raise KldmError(f"{url} cannot be downloaded ({reason})", remedy=by_hand) from None
        if blob_id(part) == blob:
            os.replace(part, path)
            return path
        part.unlink()
        problem = f"{url} did not arrive as published (its git blob id is not {blob}) and was removed"
        if not resumed:
            break
    raise KldmError(problem, remedy=f"run it again, or {by_hand}")


def _transfer(url: str, part: Path, timeout: float) -> None:
    """Append the missing bytes to ``part``. Raises ``Interrupted`` if the connection ends before the file does."""
    from tqdm import tqdm

    present = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "kldm", **({"Range": f"bytes={present}-"} if present else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and present:
            return  # no byte is missing; the blob id tells whether they are right
        raise
    with response:
        if _first_byte(response.headers.get("Content-Range")) != present:  # the server ignored the range
            present = 0
        length = response.headers.get("Content-Length")
        total = present + int(length) if length else None
        with (
            part.open("ab" if present else "wb") as file,
            tqdm(total=total, initial=present, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            received = present
            try:
                while block := response.read(_BLOCK):
                    file.write(block)
                    received += len(block)
                    bar.update(len(block))
            except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
                raise Interrupted(f"after {received} bytes: {error or type(error).__name__}") from None
        if total is not None and received < total:
            raise Interrupted(f"after {received} of {total} bytes")


def _first_byte(content_range: str | None) -> int:
    """The position in the file of the first byte of a response."""
    match = re.match(r"bytes (\d+)-", content_range or "")
    return int(match.group(1)) if match else 0
