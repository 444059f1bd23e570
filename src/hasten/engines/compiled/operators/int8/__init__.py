"""Operations on pictures of bytes: uint8 activations, int8 weights, sums of 32 bits."""
