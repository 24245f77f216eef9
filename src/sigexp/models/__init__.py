"""One short function or class each, (input_shape, target_shape, *, fields) -> nn.Module."""
