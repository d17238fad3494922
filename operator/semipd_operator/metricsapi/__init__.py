"""The operator's own ``external.metrics.k8s.io``: what a HorizontalPodAutoscaler reads, without Prometheus.

An aggregated API: kube-apiserver proxies requests to it over TLS, shows its front-proxy certificate and names the user
in headers. ``wire`` is the protocol, ``certificates`` and ``credentials`` are our side of TLS, ``frontproxy`` and
``authorization`` decide who may ask, ``registration`` holds the cluster's one APIService, ``server`` joins them.
"""

from semipd_operator.metricsapi.server import MetricsAPI

__all__ = ["MetricsAPI"]
