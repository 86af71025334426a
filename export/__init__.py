"""Makes bundles and language models for `models.encoders`. Nothing that serves imports it."""
