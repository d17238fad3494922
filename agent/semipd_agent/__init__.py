"""Agent: PID 1 of a serving pod. Partitioner, SLO controller, supervisor.

It knows neither torch nor Kubernetes.
"""
