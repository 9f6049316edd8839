"""The parts of the page Dataset: what stands at its top, and what was found in its rows and mended."""
