"""Reading, decoding and augmenting images: each a pure function of (seed, epoch, index)."""
