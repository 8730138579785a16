"""What an import needs of the service: an image through its engine, and a configuration."""
