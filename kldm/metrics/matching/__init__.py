"""Whether two crystals are the same: pymatgen's StructureMatcher, faster, and what is built on it."""
