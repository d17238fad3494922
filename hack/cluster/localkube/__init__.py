"""A real Kubernetes on one Linux machine: builds its programs, runs them in namespaces of their own.

Standard library only, so that it runs before any virtual environment exists.
Knows nothing of SemiPD: it could serve any operator's end-to-end tests.
"""
