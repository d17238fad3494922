"""The custom resource as types: one package for each API version, and how types become an OpenAPI schema."""
