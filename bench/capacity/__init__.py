"""How full a pod is, and how many pods a load needs: the agent's ratio against what simulated engines serve."""
