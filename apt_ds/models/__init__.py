"""What a model is made of: architectures, loading, adapters, quantized weights, export."""
