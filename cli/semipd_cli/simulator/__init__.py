"""`semipd simulate`: production scheduler, block manager and policies in virtual time, against a step oracle."""
