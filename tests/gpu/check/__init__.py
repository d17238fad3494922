"""One call that shows on a GPU what no test elsewhere can: ``python -m tests.gpu.check``. See ``__main__``."""
