"""Several simulated pods and an autoscaler: the production pilot in each pod, Kubernetes' own rules above them."""
