"""How a batch of draws advances by one denoiser call: their rows, their programs, the step."""
