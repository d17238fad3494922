"""`semipd`, the user's command line: serves a manifest without Kubernetes, judges and renders it, checks a machine."""
