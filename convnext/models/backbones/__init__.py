"""Networks, all under one contract: `forward(x) -> logits`, `features(x) -> maps`, `.channels`, `.strides`."""
