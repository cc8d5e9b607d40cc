"""A real alignment, recorded: SmolLM2-135M-Instruct on the prompts of HH-RLHF."""
