"""The controller's study: production policies against constants and other rules, on seeds that no tuning saw."""
