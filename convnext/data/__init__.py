"""Reading, decoding and augmenting images: everything a pure function of (seed, epoch, index)."""
