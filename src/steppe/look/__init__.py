"""`steppe look`: how the loss lies around a trained model: spectrum, sharpness, a plane, balance of LoRA's pairs."""
