"""What the rest stands on: processes, files, random streams, memory and rows; knows nothing of crystals."""
