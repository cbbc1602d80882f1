"""The data sets known by name: where their authors publish them, and where they are looked for on this machine."""

import os
from pathlib import Path

import attrs

from kldm.data import cache
from kldm.data.download import download
from kldm.errors import KldmError
from kldm.runtime.paths import expanded

SPLITS = ("train", "val", "test")

SUFFIXES = (".csv", ".csv.gz", ".safetensors")

GITHUB = "https://raw.githubusercontent.com"
"""Serves ``<owner>/<repository>/<commit>/<path>`` as a plain file."""


@attrs.frozen(kw_only=True)
class Source:
    """A published data set.

    Attributes:
        name: its name in recipes.
        max_atoms: number of atoms of its largest crystal.
        repository: ``owner/name`` of the authors' repository.
        commit: the commit that the files are taken from.
        folder: the folder of the CSVs in the repository.
        blobs: git blob id of each split's file, by which its content is verified.
    """

    name: str
    max_atoms: int
    repository: str
    commit: str
    folder: str
    blobs: dict[str, str]

    def url(self, split: str, base: str = GITHUB) -> str:
        return f"{base}/{self.repository}/{self.commit}/{self.folder}/{split}.csv"


CDVAE = "txie-93/cdvae", "f857f598d6f6cca5dc1ea0582d228f12dcc2c2ea"
DIFFCSP = "jiaor17/DiffCSP", "7121d159826efa2ba9500bf299250d96da37f146"


def _source(name: str, max_atoms: int, origin: tuple[str, str], *blobs: str) -> Source:
    return Source(
        name=name,
        max_atoms=max_atoms,
        repository=origin[0],
        commit=origin[1],
        folder=f"data/{name}",
        blobs=dict(zip(SPLITS, blobs, strict=True)),
    )


SOURCES = {
    source.name: source
    for source in (
        _source(
            "perov_5",
            5,
            CDVAE,
            "0769074b5d51d293b765c4371b8f55c468c9c9f2",
            "4a2c8dde98347dd0e01fa83dcf3982c2abe98f9f",
            "d3c5d5af4b27a2a139149f2bb73c8a3dba9d8ac1",
        ),
        _source(
            "carbon_24",
            24,
            CDVAE,
            "5e7ae970fbad8ddc46b6963e8cd6e425f11783a6",
            "b3e29b927883642426ca1d9632d00359b412742b",
            "9beca843fde489de1fe288b32f9e3ff710d42803",
        ),
        _source(
            "mp_20",
            20,
            CDVAE,
            "b1c9d498565ac2fd8d075a51ff2ef5e51ba6c21f",
            "7efe4d7ebeb4f460ceaad35e5326c42111d9c9a1",
            "5dc643041df53f5ce4970a79930ad262b4f07acd",
        ),
        _source(
            "mpts_52",
            52,
            DIFFCSP,
            "28c53b0a0fd3f32fb8078aca8e5b484e372790c6",
            "a377ba0ca7bee37ee69d9f50f8362eaa35d9f690",
            "2e8af159618f63be346b6527f155514323964423",
        ),
    )
}


def find(source: Source, split: str, root: Path | None = None, base: str = GITHUB) -> Path:
    """The file of a split: in ``root`` if that is given, else in ``$KLDM_DATA/<name>``, else in the user's cache.

    A file that is in none of them is downloaded into the cache.

    Args:
        source: the data set.
        split: ``train``, ``val`` or ``test``.
        root: a folder that holds ``<split>.csv``, ``.csv.gz`` or ``.safetensors``, itself or in ``<name>/``.
        base: the server of the authors' files.

    Raises:
        KldmError: ``root`` lacks the file, or it is not on this machine and cannot be downloaded.
    """
    file = local_file(source, split, root)
    return file or download(source.url(split, base), _cache_folder(source) / f"{split}.csv", source.blobs[split])


def local_file(source: Source, split: str, root: Path | None = None) -> Path | None:
    """The file of ``find``, or None if it would be downloaded."""
    if root is not None:
        return in_folder(root, split, source.name)
    shared = os.environ.get("KLDM_DATA")
    if shared and (file := _split_file(expanded(shared) / source.name, split)):
        return file
    return _split_file(_cache_folder(source), split)


def _cache_folder(source: Source) -> Path:
    return cache.folder() / "data" / source.name


def in_folder(folder: Path, split: str, name: str = "") -> Path:
    """The file of a split in the subfolder ``name`` of a folder, or in the folder. Raises ``KldmError`` without one."""
    for place in (folder / name, folder):
        if file := _split_file(place, split):
            return file
    raise KldmError(
        f"the split {split!r} is not here",
        place=str(folder),
        remedy=f"put it there as {split}.csv, {split}.csv.gz or {split}.safetensors",
    )


def _split_file(folder: Path, split: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()), None)
