"""Speed: train steps, finetuning and the host loop, measured beside peers."""
