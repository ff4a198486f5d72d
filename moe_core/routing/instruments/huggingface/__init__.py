"""Models of the transformers library: loading one, finding its routers, and what its families do differently."""
