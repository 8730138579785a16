"""Images drawn without a service, in a plain batched loop."""
