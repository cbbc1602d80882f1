"""Data sets as ``CrystalStore``: the published CSVs, a user's own files and pymatgen's prototypes."""

from kldm.data.cache import DATA_VERSION, load_store, save_store
from kldm.data.parsing import Parsed, Skipped
from kldm.data.prototypes import read_prototypes
from kldm.data.published import read_csv
from kldm.data.settings import KNOWN, Data
from kldm.data.sources import SOURCES, SPLITS, Source

__all__ = [
    "DATA_VERSION",
    "KNOWN",
    "SOURCES",
    "SPLITS",
    "Data",
    "Parsed",
    "Skipped",
    "Source",
    "load_store",
    "read_csv",
    "read_prototypes",
    "save_store",
]
