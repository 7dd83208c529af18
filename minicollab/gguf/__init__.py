"""From a GGUF to a trainable folder, and from a trained adapter back to a GGUF."""
