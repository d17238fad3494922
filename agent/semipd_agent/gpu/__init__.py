"""What the driver says of the GPU (NVML): facts, telemetry and faults. Controls nothing."""
