"""Reads samples and references of any program, and finds which sample answers which row of the reference."""

from kldm.reading.alignment import Alignment, align
from kldm.reading.reference import Reference, find_reference, read_reference
from kldm.reading.rows import SampleFile
from kldm.reading.samples import read_file, read_samples, record_of

__all__ = [
    "Alignment",
    "Reference",
    "SampleFile",
    "align",
    "find_reference",
    "read_file",
    "read_reference",
    "read_samples",
    "record_of",
]
