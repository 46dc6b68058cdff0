"""Pipelines: graphs of models, called like a model. Pure: what a graph is, whether it makes sense, what runs next."""
