"""Downloads that resume, verify and never leave half a file under the final name."""

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
    """The transfer ended early; what came is kept and the next attempt goes on from there."""


def blob_id(path: Path) -> str:
    """git's id of a file: sha1 of ``blob <size>``, a zero byte and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def download(url: str, path: Path, blob: str, timeout: float = TIMEOUT) -> Path:
    """Fetch a file, resuming ``<path>.part`` where an earlier try left one, and verify it by its git blob id.

    Args:
        url: what to fetch.
        path: where it goes; appears only when complete and verified.
        blob: its git blob id.
        timeout: seconds without a byte after which a transfer counts as interrupted.

    Raises:
        KldmError: where the server cannot be reached or lacks the file, the transfer keeps ending early (what came
            is kept for the next try), or the content is not the published one (it is removed).
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
            raise KldmError(f"{url} is not to be had (HTTP status {error.code})", remedy=by_hand) from None
        except urllib.error.URLError as error:
            raise KldmError(f"{url} cannot be reached ({error.reason})", remedy=by_hand) from None
        except OSError as error:
            raise KldmError(f"{url} cannot be downloaded ({error})", remedy=by_hand) from None
        if blob_id(part) == blob:
            os.replace(part, path)
            return path
        part.unlink()
        problem = f"{url} did not arrive as published (its git blob id is not {blob}) and was removed"
        if not resumed:
            break
    raise KldmError(problem, remedy=f"run it again, or {by_hand}")


def _transfer(url: str, part: Path, timeout: float) -> None:
    """Append what is missing of ``part``. Raises ``Interrupted`` where the connection ends before the file does."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "kldm", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # nothing is missing; whether it is right, the blob id tells
        raise
    with response:
        start = _start(response.headers.get("Content-Range"))
        if start != have:  # the server sends the whole file, whatever was asked for
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=total, initial=have, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            got = have
            try:
                while block := response.read(_BLOCK):
                    file.write(block)
                    got += len(block)
                    bar.update(len(block))
            except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
                raise Interrupted(f"after {got} bytes: {error or type(error).__name__}") from None
        if total is not None and got < total:
            raise Interrupted(f"after {got} of {total} bytes")


def _start(content_range: str | None) -> int:
    """The first byte that a response holds."""
    match = re.match(r"bytes (\d+)-", content_range or "")
    return int(match.group(1)) if match else 0
