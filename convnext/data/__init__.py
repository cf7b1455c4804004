"""Reading, decoding and augmenting pictures: everything a pure function of (seed, epoch, index)."""
