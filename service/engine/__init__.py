"""The step engine: draws at any timestep, of any policy, in one batch.

One tick is `schedule` (who has a slot), `run` (one denoiser call for all of them), `postprocess`
(who is finished). `scheduler` decides without tensors, `models.sampling` holds rows and does the
mathematics, `engine` ties them, and `loop` gives it a thread and asyncio callers.
"""
