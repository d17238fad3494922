"""Agent: PID 1 of a serving pod. Partitioner, SLO controller, supervisor.

It knows neither torch nor Kubernetes.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("semipd")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
