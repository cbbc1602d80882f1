"""Tools for processes, files, random streams, memory and rows, which know nothing of crystals."""
