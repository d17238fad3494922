"""One call that shows on a GPU what no test elsewhere can: ``python -m tests.gpu.smoke``. See ``__main__``."""
