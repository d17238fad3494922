"""Certificates and kubeconfigs of one cluster, by the openssl program. Valid for a year: longer than any cluster."""

import subprocess
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from localkube.errors import ClusterError


@dataclass(frozen=True)
class Certificate:
    """`subject` in openssl's form; with `sans` a server certificate, without a client's."""

    name: str
    subject: str
    sans: tuple[str, ...] = ()


def certificates(node: str, node_ip: str, service_ip: str) -> tuple[Certificate, ...]:
    """Every certificate below the one CA. Subjects are the identities that RBAC's built-in roles are bound to."""
    kubernetes = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    names = (
        *(f"DNS:{name}" for name in (*kubernetes, "localhost")),
        *(f"IP:{ip}" for ip in (node_ip, "127.0.0.1", service_ip)),
    )
    return (
        Certificate("apiserver", "/CN=kube-apiserver", names),
        Certificate("kubelet-server", f"/CN={node}", (f"DNS:{node}", f"IP:{node_ip}")),
        Certificate("admin", "/O=system:masters/CN=admin"),
        Certificate("controller-manager", "/CN=system:kube-controller-manager"),
        Certificate("scheduler", "/CN=system:kube-scheduler"),
        Certificate("proxy", "/CN=system:kube-proxy"),
        Certificate("dns", "/CN=system:coredns"),
        Certificate("kubelet", f"/O=system:nodes/CN=system:node:{node}"),
        # Who the apiserver is when it calls a kubelet, and when it calls an aggregated API.
        Certificate("apiserver-kubelet", "/O=system:masters/CN=kube-apiserver-kubelet-client"),
        Certificate("front-proxy", "/CN=front-proxy-client"),
    )


KUBECONFIGS = ("admin", "controller-manager", "scheduler", "proxy", "dns", "kubelet")


def issue(folder: Path, wanted: tuple[Certificate, ...]) -> None:
    """Writes ca, one NAME.crt and NAME.key per certificate, and the service accounts' key pair into `folder`."""
    folder.mkdir(parents=True, mode=0o700)
    _new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    ca = (
        "-out",
        "ca.crt",
        "-keyout",
        "ca.key",
        "-subj",
        "/CN=semipd-e2e",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
    )
    _openssl(folder, "req", "-x509", *_new_key, "-days", "365", *ca)

    def sign(one: Certificate) -> None:
        usage = "serverAuth" if one.sans else "clientAuth"
        extensions = [f"extendedKeyUsage={usage}", "basicConstraints=critical,CA:FALSE"]
        if one.sans:
            extensions.append(f"subjectAltName={','.join(one.sans)}")
        added = [word for extension in extensions for word in ("-addext", extension)]
        files = ("-out", f"{one.name}.crt", "-keyout", f"{one.name}.key")
        signer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-days", "365")
        _openssl(folder, "req", "-x509", *_new_key, *signer, *files, "-subj", one.subject, *added)

    def service_account_keys() -> None:
        _openssl(folder, "genrsa", "-out", "service-account.key", "2048")
        _openssl(folder, "rsa", "-in", "service-account.key", "-pubout", "-out", "service-account.pub")

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(service_account_keys), *(pool.submit(sign, one) for one in wanted)]
        for job in jobs:
            job.result()


def kubeconfig(folder: Path, name: str, server: str) -> dict[str, object]:
    """A self-contained kubeconfig for the client certificate `name`."""

    def data(file: str) -> str:
        return b64encode((folder / file).read_bytes()).decode()

    user = {"client-certificate-data": data(f"{name}.crt"), "client-key-data": data(f"{name}.key")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {"server": server, "certificate-authority-data": data("ca.crt")}}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
        "current-context": "e2e",
    }


def _openssl(folder: Path, *arguments: str) -> None:
    answer = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise ClusterError(f"openssl {arguments[0]} failed: {last}", "openssl 3.0 or newer is needed")
