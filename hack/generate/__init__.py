"""The files of the source tree that are made from the typed model: CRD, its chart copy, reference pages."""
