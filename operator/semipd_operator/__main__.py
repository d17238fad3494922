"""``semipd-operator``: flags, then `app.run`. Every flag may be given as SEMIPD_OPERATOR_<FLAG> in the environment."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from semipd_operator.claims import own_name
from semipd_operator.keys import KeyRing
from semipd_operator.settings import (
    ENGINE_USER,
    LeaseName,
    MetricsAPISettings,
    Settings,
    SettingsError,
    package_version,
)

LOG_LEVELS = ("debug", "info", "warning", "error")


def _default(flag: str, otherwise: str = "") -> str:
    return os.environ.get("SEMIPD_OPERATOR_" + flag.upper().replace("-", "_"), otherwise)


def _words(flag: str) -> list[str]:
    return [word for word in _default(flag).split(",") if word]


def parse(arguments: Sequence[str]) -> tuple[Settings, str]:
    """(settings, log level). Raises `SettingsError`."""
    parser = argparse.ArgumentParser(prog="semipd-operator", description=__doc__)
    parser.add_argument("--engine-image", default=_default("engine-image"), help="for services that name no image")
    parser.add_argument("--key-file", type=Path, default=_default("key-file") or None, help="secret key, mounted")
    parser.add_argument(
        "--previous-key-file",
        type=Path,
        action="append",
        default=None,
        help="of a key that pods may still go by; need not exist; repeatable",
    )
    parser.add_argument("--namespace", action="append", default=None, help="to watch; repeatable; default: all")
    parser.add_argument("--engine-pull-policy", default=_default("engine-pull-policy"), help="default: Kubernetes'")
    parser.add_argument("--engine-pull-secret", action="append", default=None, help="repeatable")
    parser.add_argument(
        "--engine-user",
        type=int,
        default=_default("engine-user") or ENGINE_USER,
        help="user and group of the engine pods; 0: the cluster gives them one, as OpenShift does",
    )
    parser.add_argument(
        "--pod-monitor-label", action="append", default=None, metavar="NAME=VALUE", help="of PodMonitors; repeatable"
    )
    parser.add_argument("--agent-port", type=int, default=_default("agent-port") or Settings.agent_port)
    parser.add_argument("--health-port", type=int, default=_default("health-port") or Settings.health_port)
    parser.add_argument("--metrics-port", type=int, default=_default("metrics-port") or Settings.metrics_port)
    parser.add_argument(
        "--lease",
        default=_default("lease"),
        help="NAMESPACE/NAME of the Lease by which one of several replicas leads; default: this is the only one",
    )
    parser.add_argument(
        "--metrics-api-service",
        default=_default("metrics-api-service"),
        help="NAMESPACE/NAME of the Service that serves external.metrics.k8s.io; default: it is not served",
    )
    parser.add_argument(
        "--metrics-api-secret", default=_default("metrics-api-secret"), help="for a certificate of our own"
    )
    parser.add_argument(
        "--metrics-api-tls-dir",
        default=_default("metrics-api-tls-dir"),
        help="of someone else's tls.crt and tls.key, instead of --metrics-api-secret",
    )
    parser.add_argument("--metrics-api-port", type=int, default=_default("metrics-api-port") or MetricsAPISettings.port)
    parser.add_argument(
        "--metrics-api-service-port",
        type=int,
        default=_default("metrics-api-service-port") or MetricsAPISettings.service_port,
        help="port of the Service",
    )
    parser.add_argument("--resync-seconds", type=float, default=_default("resync-seconds") or Settings.resync_seconds)
    parser.add_argument("--log-level", default=_default("log-level", "info"))
    parser.add_argument("--version", action="version", version=package_version())
    options = parser.parse_args(arguments)
    if options.log_level not in LOG_LEVELS:
        raise SettingsError(f"--log-level {options.log_level}: write one of {', '.join(LOG_LEVELS)}")
    if not options.engine_image:
        raise SettingsError("--engine-image is not set: name the image of agent and engine")
    if options.key_file is None:
        raise SettingsError("--key-file is not set: name the file that the chart's Secret is mounted at")
    files = (Path(options.key_file), *(options.previous_key_file or map(Path, _words("previous-key-file"))))
    key, *earlier = KeyRing(files).keys
    lease = LeaseName(*_place("--lease", options.lease)) if options.lease else None
    settings = Settings(
        engine_image=options.engine_image,
        key=key,
        earlier_keys=tuple(earlier),
        key_files=files,
        name=own_name(lease, key),
        namespaces=tuple(options.namespace if options.namespace is not None else _words("namespace")),
        image_pull_policy=options.engine_pull_policy,
        image_pull_secrets=tuple(
            options.engine_pull_secret if options.engine_pull_secret is not None else _words("engine-pull-secret")
        ),
        engine_user=int(options.engine_user) or None,
        pod_monitor_labels=tuple(
            _pair("--pod-monitor-label", each)
            for each in (
                options.pod_monitor_label if options.pod_monitor_label is not None else _words("pod-monitor-label")
            )
        ),
        agent_port=int(options.agent_port),
        health_port=int(options.health_port),
        metrics_port=int(options.metrics_port),
        lease=lease,
        metrics_api=_metrics_api(options),
        resync_seconds=float(options.resync_seconds),
        deaf_after_seconds=max(Settings.deaf_after_seconds, 3 * float(options.resync_seconds)),
    )
    return settings, options.log_level


def _metrics_api(options: argparse.Namespace) -> MetricsAPISettings | None:
    """Raises `SettingsError`."""
    if not options.metrics_api_service:
        return None
    namespace, service = _place("--metrics-api-service", options.metrics_api_service)
    if bool(options.metrics_api_secret) == bool(options.metrics_api_tls_dir):
        raise SettingsError("--metrics-api-service needs one of --metrics-api-secret and --metrics-api-tls-dir")
    return MetricsAPISettings(
        namespace=namespace,
        service=service,
        secret=options.metrics_api_secret,
        tls_dir=Path(options.metrics_api_tls_dir) if options.metrics_api_tls_dir else None,
        port=int(options.metrics_api_port),
        service_port=int(options.metrics_api_service_port),
    )


def _pair(flag: str, value: str) -> tuple[str, str]:
    """Raises `SettingsError`."""
    name, equals, text = value.partition("=")
    if not (name and equals):
        raise SettingsError(f"{flag} {value}: write NAME=VALUE")
    return name, text


def _place(flag: str, value: str) -> tuple[str, str]:
    """(namespace, name). Raises `SettingsError`."""
    namespace, slash, name = value.partition("/")
    if not (namespace and slash and name):
        raise SettingsError(f"{flag} {value}: write NAMESPACE/NAME")
    return namespace, name


def _is_news(record: logging.LogRecord) -> bool:
    """Which right is missing `rights` says, once; Kopf would say it in 700 characters at each try."""
    return not (record.name.startswith("kopf.") and "APIForbiddenError(" in record.getMessage())


def main() -> None:
    from semipd_operator.app import run  # after the flags: --help should not wait for kopf

    try:
        settings, level = parse(sys.argv[1:])
    except SettingsError as error:
        sys.exit(f"semipd-operator: {error}")
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if level != "debug":  # a line for each event and each request helps nobody
        for chatty in ("httpx", "kopf"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_news)
    logging.getLogger("semipd_operator").info("semipd-operator %s", settings.version)
    asyncio.run(run(settings))


if __name__ == "__main__":
    main()
