"""A gRPC-native model mesh: nodes hold models, routers carry KServe v2 requests to them, etcd is the registry."""

__version__ = "0.1.0"
